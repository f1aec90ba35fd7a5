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
SlurmdTimeout=20
KillWait=20
MinJobAge=3600
OverTimeLimit=1
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE GraceTime=30
PartitionName=cpu Nodes=node1,node2 MaxTime=INFINITE
PartitionName=urgent Nodes=node1,node2 MaxTime=INFINITE PriorityTier=100
"""
GPUS = 8
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
            f"NodeName={node} NodeAddr={machines.addresses[node]} CPUs=16 Gres=gpu:{GPUS} RealMemory=8000 State=UNKNOWN"
            for node in NODES
        ]
        (self.folder / "slurm.conf").write_text(
            CONF.format(login=machines.addresses[LOGIN], folder=self.folder, nodes="\n".join(lines))
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        # Files that stand for GPUs: enough for Slurm, which gives them out and sets its variables.
        for number in range(GPUS):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
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

    def restart_node(self, node: str) -> None:
        """Take away what is on a node, and start its daemons anew, as after a power cut."""
        self.machines.kill_all(node)
        self.machines.start_sshd(node)
        self.start_node(node)

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

    def nodes(self, number: int) -> list[str]:
        """The nodes on which a job runs; none while it waits."""
        return (
            self.ask("squeue", "-h", "-j", str(number), "-t", "RUNNING", "-o", "%N").replace("[1-2]", "1 node2").split()
        )

    def restarts(self, number: int) -> int:
        """How often a job came back."""
        return int(self.job(number).get("Restarts", "0"))

    def wait_done(self, number: int, limit_s: float = 600) -> str:
        """Wait for a job's end, requeued or not; returns its last state."""
        wait_for(lambda: self.state(number) in DONE, f"job {number}, {self.state(number)}", limit_s)
        return self.state(number)
