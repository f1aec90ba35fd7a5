"""A real Slurm on machines made of namespaces: munged and slurmctld on the login node, a slurmd on each other one."""

import os
import shutil
from pathlib import Path

from tests.factories.machines import LOGIN, NODES, PLACES, Machines, wait_for

CONF = """\
ClusterName=test
SlurmctldHost=login({login})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout=15
KillWait=20
MinJobAge=3600
OverTimeLimit=1
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE
PartitionName=cpu Nodes=node1,node2 MaxTime=INFINITE
"""
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY")


class Slurm:
    """Daemons on `machines`, and questions to them."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.folder = machines.folder / "slurm"
        for name in ("state", "munge", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        # Munge wants to know that nobody else can write on the way to its socket.
        for above in (self.folder, self.folder / "munge"):
            above.chmod(0o755)
        (self.folder / "munge/key").write_bytes(os.urandom(128))
        (self.folder / "munge/key").chmod(0o400)
        lines = [
            f"NodeName={node} NodeAddr={machines.addresses[node]} CPUs=4 RealMemory=8000 State=UNKNOWN"
            for node in NODES
        ]
        (self.folder / "slurm.conf").write_text(
            CONF.format(login=machines.addresses[LOGIN], folder=self.folder, nodes="\n".join(lines))
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.environment = machines.base | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start all daemons; returns when both nodes can be used."""
        munge = self.folder / "munge"
        self._daemon(
            LOGIN,
            *("munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        )
        wait_for((munge / "socket").exists, "munged")
        self._daemon(LOGIN, "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait_idle()

    def _daemon(self, machine: str, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=PLACES)
        assert path is not None
        self.machines.start(machine, f"{program}-{machine}", path, *arguments, environment=self.environment)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd; it wants control groups, and `ip netns exec` has mounted a /sys without them."""
        mounted = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
        self._daemon(node, "sh", "-c", mounted, "sh", shutil.which("slurmd", path=PLACES) or "slurmd", "-D", "-N", node)

    def wait_idle(self) -> None:
        """Return when both nodes are idle."""
        wait_for(
            lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * len(NODES), "Slurm"
        )

    def ask(self, *command: str, folder: Path | None = None) -> str:
        """What one of Slurm's programs prints on the login node."""
        done = self.machines.run(list(command), folder=folder, environment=self.environment)
        return done.stdout.strip()

    def job(self, number: int) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.ask("scontrol", "show", "job", str(number), "-o").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, number: int) -> str:
        """The state of a job."""
        return self.job(number).get("JobState", "")

    def wait_done(self, number: int, limit_s: float = 600) -> str:
        """Wait for a job's end, requeued or not; returns its last state."""
        wait_for(lambda: self.state(number) in DONE, f"job {number}, {self.state(number)}", limit_s)
        return self.state(number)
