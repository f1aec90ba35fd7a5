"""A hostfile and the variables beside it, judged before DeepSpeed's launcher reads them."""

from pathlib import Path

import pytest

from train.hostfile import HostfileError, choose_variables, parse_hosts, read_variables, ssh_problem


def test_hosts_and_slots_are_read_comments_and_empty_lines_are_not() -> None:
    hosts = parse_hosts("# two nodes\n\nnode-1 slots=8\n  node-2   slots=4 \n", "hosts")
    assert [(host.name, host.slots, host.where) for host in hosts] == [
        ("node-1", 8, "hosts:3"),
        ("node-2", 4, "hosts:4"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node-1 slots=8\nnode-1 slots=8\n", "hosts:2: node-1 stands in hosts:1 already"),
        ("node-1\n", "hosts:1: 'node-1': expected a name and its GPUs, as `node-1 slots=8`"),
        ("node-1 slots=8 # fast\n", "expected a name and its GPUs"),
        ("node-1 slots=0\n", "hosts:1: node-1 has no slots"),
        ("# nobody\n", "hosts: no host in it"),
    ],
)
def test_a_line_that_the_launcher_stumbles_over_is_named(text: str, said: str) -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hosts(text, "hosts")
    assert said in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hosts("a\na slots=1\na slots=2\n", "hosts")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=1\n\nB=2\n", ".deepspeed_env:2: an empty line stops"),
        ("# mine\nA=1\n", ".deepspeed_env:1: '# mine' stops"),
        ("WANDB_API_KEY=x\n", "WANDB_API_KEY would be seen in the command line"),
    ],
)
def test_lines_that_crash_the_launcher_and_secrets_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / ".deepspeed_env").write_text(text)
    with pytest.raises(HostfileError) as caught:
        read_variables(tmp_path / ".deepspeed_env")
    assert said in str(caught.value)
    assert "=x" not in str(caught.value)


def test_variables_that_the_launcher_leaves_behind_are_taken_and_secrets_are_not() -> None:
    here = {
        "HF_HOME": "/a=b",
        "WANDB_API_KEY": "x",
        "NCCL_DEBUG": "INFO",
        "MINE": "1",
        "HOME": "/root",
        "HF_TOKEN": "y",
    }
    assert choose_variables(here, {"OLD": "0", "HF_HOME": "/old"}, ["MINE"]) == {
        "OLD": "0",
        "HF_HOME": "/a=b",
        "MINE": "1",
    }
    for more, said in (("HF_TOKEN", "keep it in a file"), ("ABSENT", "it is not set here")):
        with pytest.raises(HostfileError, match=said):
            choose_variables(here, {}, [more])
    with pytest.raises(HostfileError, match="its value has '\\$' in it"):
        choose_variables({"HF_HOME": "/x/$USER"}, {}, [])


def test_what_ssh_says_becomes_what_to_do() -> None:
    host = parse_hosts("b slots=1", "hosts")[0]
    assert "ssh-copy-id b" in ssh_problem(host, "root@b: Permission denied (publickey,password).\n")
    assert "say yes to it once" in ssh_problem(host, "Host key verification failed.\n")
    assert "No route to host" in ssh_problem(host, "ssh: connect to host b port 22: No route to host\n")
