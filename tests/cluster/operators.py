"""What makes pods out of the objects of launch/: the MPI operator, LeaderWorkerSet's, KServe, Kubernetes' StatefulSet.

Each knows which pods should be there (wanted), and is asked again whenever one is gone: Cluster.reconcile().
"""
import copy
import pathlib
import subprocess
import tempfile

HOSTS = "/etc/mpi"


def pod_of(template, name, namespace, labels, **spec):
    """A pod object from a template."""
    metadata = copy.deepcopy(template.get("metadata", {}))
    metadata.update(name=name, namespace=namespace, labels={**metadata.get("labels", {}), **labels})
    return {"metadata": metadata, "spec": {**copy.deepcopy(template["spec"]), **spec}}


class MpiJob:
    """kubeflow.org/v2beta1: workers with sshd, a launcher that finds them in /etc/mpi/hostfile, one key for all."""

    def __init__(self, cluster, document):
        self.cluster, self.document = cluster, document
        self.name, self.namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        self.spec = document["spec"]
        self.launcher, self.worker = (self.spec["mpiReplicaSpecs"][role] for role in ("Launcher", "Worker"))
        assert self.spec["mpiImplementation"] == "OpenMPI" and self.launcher["replicas"] == 1
        common = {"training.kubeflow.org/operator-name": "mpi-operator", "training.kubeflow.org/job-name": self.name}
        self.labels = common
        cluster.add_object("secret", f"{self.name}-ssh", self.keys())
        cluster.add_object("configMap", f"{self.name}-config", self.hostfile())
        cluster.add_service(self.name, common, self.spec["runLauncherAsWorker"])

    @staticmethod
    def keys():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "id_rsa"
            subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "521", "-m", "PEM", "-N", "", "-f", path], check=True)
            public = path.with_suffix(".pub").read_text()
            return {"id_rsa": path.read_text(), "id_rsa.pub": public, "authorized_keys": public}

    def hosts(self):
        launcher = [f"{self.name}-launcher"] if self.spec["runLauncherAsWorker"] else []
        names = launcher + [f"{self.name}-worker-{i}" for i in range(self.worker["replicas"])]
        return [f"{n}.{self.name}.{self.namespace}.svc" for n in names]

    def hostfile(self):
        lines = "".join(f"{host} slots={self.spec['slotsPerWorker']}\n" for host in self.hosts())
        script = "#!/bin/sh\n" + "".join(f"echo {host}\n" for host in sorted(self.hosts()))
        return {"hostfile": lines, "discover_hosts.sh": script}

    def mount(self, pod, name, path, **source):
        pod["spec"].setdefault("volumes", []).append({"name": name, **source})
        pod["spec"]["containers"][0].setdefault("volumeMounts", []).append({"name": name, "mountPath": path})

    def pod(self, role, index, name, restart_policy, environment, **spec):
        template = (self.launcher if role == "launcher" else self.worker)["template"]
        labels = {**self.labels, "training.kubeflow.org/job-role": role, "training.kubeflow.org/replica-index": str(index)}
        pod = pod_of(template, name, self.namespace, labels, hostname=name, subdomain=self.name,
                     restartPolicy=restart_policy, **spec)
        pod["spec"]["containers"][0].setdefault("env", []).extend({"name": k, "value": v} for k, v in environment.items())
        items = [{"key": k, "path": k} for k in ("id_rsa", "id_rsa.pub", "authorized_keys")]
        self.mount(pod, "ssh-auth", self.spec["sshAuthMountPath"], secret={"secretName": f"{self.name}-ssh", "items": items})
        return pod

    def wanted(self):
        """{pod name: object}"""
        found = {}
        first = 1 if self.spec["runLauncherAsWorker"] else 0
        for i in range(self.worker["replicas"]):
            name = f"{self.name}-worker-{i}"
            pod = self.pod("worker", i + first, name, self.worker["restartPolicy"], {"K_MPI_JOB_ROLE": "worker"},
                           dnsConfig={"searches": [f"{self.name}.{self.namespace}.svc.{self.cluster.domain}"]})
            container = pod["spec"]["containers"][0]
            if "command" not in container and "args" not in container:
                container["command"] = ["/usr/sbin/sshd", "-De"]
            found[name] = pod
        name = f"{self.name}-launcher"
        slots = str(self.spec["slotsPerWorker"])
        launcher = self.pod("launcher", 0, name, self.launcher["restartPolicy"], {
            "K_MPI_JOB_ROLE": "launcher", "OMPI_MCA_orte_keep_fqdn_hostnames": "true",
            "OMPI_MCA_orte_default_hostfile": f"{HOSTS}/hostfile", "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10",
            "OMPI_MCA_orte_set_default_slots": slots})
        self.mount(launcher, "mpi-job-config", HOSTS, configMap={"name": f"{self.name}-config", "items": [
            {"key": "hostfile", "path": "hostfile", "mode": 0o444},
            {"key": "discover_hosts.sh", "path": "discover_hosts.sh", "mode": 0o555}]})
        if self.spec["launcherCreationPolicy"] == "AtStartup" or all(self.cluster.is_ready(n) for n in found):
            found[name] = launcher
        return found

    def group_to_remake(self, _pods):
        return []


class LeaderWorkerSet:
    """leaderworkerset.x-k8s.io/v1: one group; when a container of it restarts or a pod goes, all its pods are made anew: the
    leader is deleted and takes its workers along, and a new leader comes when all of them are gone."""

    def __init__(self, cluster, document):
        self.cluster, self.document = cluster, document
        self.name, self.namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        self.spec = document["spec"]
        self.group = self.spec["leaderWorkerTemplate"]
        assert self.spec["replicas"] == 1 and self.group["restartPolicy"] == "RecreateGroupOnPodRestart"
        assert self.spec["startupPolicy"] == "LeaderCreated"
        self.is_going = False
        self.seen = set()
        cluster.add_service(self.name, {"leaderworkerset.sigs.k8s.io/name": self.name}, True)

    def pod(self, index):
        template = self.group["leaderTemplate" if index == 0 else "workerTemplate"]
        name = f"{self.name}-0" if index == 0 else f"{self.name}-0-{index}"
        pod = pod_of(template, name, self.namespace, {"leaderworkerset.sigs.k8s.io/name": self.name,
                                                      "leaderworkerset.sigs.k8s.io/group-index": "0",
                                                      "leaderworkerset.sigs.k8s.io/worker-index": str(index)},
                     hostname=name, subdomain=self.name)
        pod["spec"]["containers"][0]["env"] = [
            {"name": "LWS_LEADER_ADDRESS", "value": f"{self.name}-0.{self.name}.{self.namespace}"},
            {"name": "LWS_GROUP_SIZE", "value": str(self.group["size"])},
            {"name": "LWS_WORKER_INDEX", "value": str(index)}, *pod["spec"]["containers"][0].get("env", [])]
        return pod

    def wanted(self):
        """The leader first; its workers once it is there."""
        if self.is_going:
            return {}
        found = {f"{self.name}-0": self.pod(0)}
        if self.cluster.exists(f"{self.name}-0"):
            found.update({f"{self.name}-0-{i}": self.pod(i) for i in range(1, self.group["size"])})
        return found

    def group_to_remake(self, pods):
        """All of the group's pods once one of them has started again, is going or, between two looks, has gone."""
        mine = [p for p in pods if p.name == f"{self.name}-0" or p.name.startswith(f"{self.name}-0-")]
        names = {p.name for p in mine}
        self.is_going = any(p.restart_count > 0 or p.is_deleting for p in mine) or (bool(mine) and not self.seen <= names)
        self.seen = self.seen | names if mine else set()
        return mine if self.is_going else []


class StatefulSet:
    """apps/v1, podManagementPolicy Parallel."""

    def __init__(self, cluster, document):
        self.cluster, self.document = cluster, document
        self.name, self.namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        self.spec = document["spec"]
        assert self.spec["podManagementPolicy"] == "Parallel"

    def wanted(self):
        """{pod name: object}"""
        names = [f"{self.name}-{i}" for i in range(self.spec["replicas"])]
        return {n: pod_of(self.spec["template"], n, self.namespace, {"statefulset.kubernetes.io/pod-name": n}, hostname=n,
                          subdomain=self.spec["serviceName"]) for n in names}

    def group_to_remake(self, _pods):
        return []


class InferenceService:
    """serving.kserve.io/v1beta1: a Deployment. On several nodes one of a head, one of workers, which have no number and no name
    that lasts; GPUs of a worker and tensorParallelSize make the number of pods."""

    def __init__(self, cluster, document):
        self.cluster, self.document = cluster, document
        self.name, self.namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        self.predictor = document["spec"]["predictor"]
        self.model = self.predictor["model"]
        self.runtime = cluster.runtimes[self.model["runtime"]]["spec"]
        head = self.merged(self.runtime["containers"][0], self.model)
        self.labels = {"app": f"isvc.{self.name}-predictor"}
        self.made = 0
        if "workerSpec" in self.runtime:
            self.plan_group(head)
        else:
            self.head, self.names = self.spec_of(self.runtime, head, {}), [None]
            cluster.add_service(f"{self.name}-predictor", self.labels, False, False)

    def plan_group(self, head):
        sizes = self.predictor["workerSpec"]
        worker = self.merged(self.runtime["workerSpec"]["containers"][0], sizes["containers"][0])
        gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
        count = -(-sizes["tensorParallelSize"] * sizes["pipelineParallelSize"] // gpus)
        both = {"RAY_NODE_COUNT": str(count), "REQUEST_GPU_COUNT": str(gpus)}
        self.head = self.spec_of(self.runtime, head, {
            "TENSOR_PARALLEL_SIZE": str(sizes["tensorParallelSize"]),
            "PIPELINE_PARALLEL_SIZE": str(sizes["pipelineParallelSize"]), **both, "MODEL_NAME": self.name,
            "MODEL_DIR": "/mnt/models"})
        self.worker = self.spec_of(self.runtime["workerSpec"], worker, {
            **both, "ISVC_NAME": self.name, "HEAD_SVC": f"{self.name}-head-1"})
        self.labels["multinode/role"] = "head"
        self.cluster.add_service(f"{self.name}-head-1", self.labels, True)
        self.cluster.add_service(f"{self.name}-predictor", self.labels, False, False)
        self.names = [None] * count

    @staticmethod
    def merged(container, more):
        """A container of the runtime with what the InferenceService says of it."""
        return {**container, "env": container.get("env", []) + more.get("env", []),
                "resources": {"limits": {**container["resources"]["limits"], **more.get("resources", {}).get("limits", {})}}}

    def spec_of(self, runtime, container, environment):
        claim, folder = self.model["storageUri"].removeprefix("pvc://").split("/", 1)
        container = copy.deepcopy(container)
        container["args"] = [word.replace("{{.Name}}", self.name) for word in container["args"]]
        container["env"] += [{"name": k, "value": v} for k, v in environment.items()]
        container["volumeMounts"].append({"name": "models", "mountPath": "/mnt/models", "subPath": folder, "readOnly": True})
        return {"containers": [container], "volumes": copy.deepcopy(runtime["volumes"]) + [
            {"name": "models", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]}

    def wanted(self):
        """A pod that is gone comes back under another name."""
        for i, name in enumerate(self.names):
            if name is None or not self.cluster.exists(name):
                self.made += 1
                self.names[i] = f"{self.name}-predictor-{'worker-' if i else ''}{self.made:05x}"
        found = {}
        for i, name in enumerate(self.names):
            labels = {**self.labels, "multinode/role": "worker"} if i else self.labels
            found[name] = pod_of({"spec": self.worker if i else self.head}, name, self.namespace, labels)
        return found

    def group_to_remake(self, _pods):
        return []


KINDS = {"InferenceService": InferenceService, "MPIJob": MpiJob, "LeaderWorkerSet": LeaderWorkerSet, "StatefulSet": StatefulSet}
