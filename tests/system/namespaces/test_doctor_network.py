"""The network is cut with real packet filters, and the doctor must say between whom.

Everything runs in one network namespace; each way has an address of its own, so that a rule can
close one and leave the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.machines import namespaces as net_support
from support.machines.namespaces import need_namespaces
from support.system.doctor import Patient, failed, root
from support.system.system import get_json
from support.waiting import wait_until

FROM_GATEWAY, FROM_RELAY, FROM_HERE = "127.0.0.2", "127.0.0.3", "127.0.0.4"
"""Under which address of the master each of them knows it."""


class NetworkPatient(Patient):
    """A system with three ways to one master."""

    namespace: net_support.Namespace

    def start(self, name: str) -> None:
        if name == "master":
            self.settings["master"]["WAVRY_MASTER_LISTEN"] = f"0.0.0.0:{self.master_port}"
            self.settings["master"]["WAVRY_MASTER_ALLOW_PUBLIC_BIND"] = "1"
        else:
            way = FROM_GATEWAY if name == "gateway" else FROM_RELAY
            variable = f"WAVRY_{name.upper()}_MASTER_URL"
            self.settings[name][variable] = f"http://{way}:{self.master_port}"
        super().start(name)
        if name == "master":
            self.ready["master"]["url"] = f"http://{FROM_HERE}:{self.master_port}"

    @property
    def master_port(self) -> int:
        url = self.ready.get("master", {}).get("url", "")
        return int(url.rpartition(":")[2] or 0)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetworkPatient]:
    need_namespaces()
    directory = tmp_path_factory.mktemp("network") / "services"
    with (
        net_support.Namespace() as namespace,
        # What this thread does from now on, tests included, it does in the namespace.
        namespace.entered(),
        NetworkPatient(directory) as running,
    ):
        running.wait_until_well()
        running.namespace = namespace
        yield running


@contextmanager
def rule(patient: NetworkPatient, text: str) -> Iterator[None]:
    patient.namespace.nft(
        f"""
        table inet faults {{
            chain in {{
                type filter hook input priority filter;
                {text}
            }}
        }}
        """
    )
    try:
        yield
    finally:
        patient.namespace.nft("delete table inet faults")


def test_a_healthy_system_is_well(patient: NetworkPatient) -> None:
    patient.examine(code=0)


@pytest.mark.parametrize("ops", [True, False], ids=["ops URL known", "from afar"])
@pytest.mark.parametrize("how", ["drop", "reject"])
def test_a_blocked_relay_port_is_the_networks_fault(
    patient: NetworkPatient, how: str, ops: bool
) -> None:
    endpoint = patient.ready["relay"]["udp"][0]
    with rule(patient, f"udp dport {endpoint.rpartition(':')[2]} {how}"):
        answer = patient.examine(code=1, ops=ops)
    assert root(answer) == ("network", "udp", patient.relay_id)
    assert f"UDP {endpoint} of relay {patient.relay_id}" in answer["summary"]
    assert ("no answer" if how == "drop" else "port is closed") in answer["root"]["evidence"]
    assert list(failed(answer)) == [f"{patient.relay_id}: udp"]


def test_a_cut_between_relay_and_master_is_named(patient: NetworkPatient) -> None:
    with rule(
        patient, f"ip daddr {FROM_RELAY} tcp dport {patient.master_port} reject with tcp reset"
    ):
        wait_until(lambda: patient.link_state() != "registered", what="the relay notices")
        at_once = patient.examine(code=1)

        def offline() -> bool:
            counts = get_json(patient.ready["master"]["url"] + "/health")["relays"]
            return "OFFLINE" in counts

        wait_until(offline, what="the master misses it")
        later = patient.examine(code=1)
        from_afar = patient.examine(code=1, ops=False)
    for answer in (at_once, later, from_afar):
        assert root(answer) == ("network", "master link", patient.relay_id)
    assert "from here the master answers" in later["root"]["evidence"]
    assert failed(later)["relays: pool"] == f"{patient.relay_id}: master link"
    assert "its UDP port answers" in from_afar["root"]["evidence"]
    patient.wait_until_well()


def test_a_cut_between_gateway_and_master_is_named(patient: NetworkPatient) -> None:
    with rule(
        patient, f"ip daddr {FROM_GATEWAY} tcp dport {patient.master_port} reject with tcp reset"
    ):
        wait_until(
            lambda: get_json(patient.gateway_url + "/ready")["master"] == "unreachable",
            what="the gateway notices",
        )
        answer = patient.examine(code=1)
    assert root(answer) == ("network", "master link", "gateway")
    assert "connection " in answer["root"]["evidence"]
    assert FROM_GATEWAY in answer["root"]["next_step"]
    wait_until(
        lambda: get_json(patient.gateway_url + "/ready")["master"] == "ok", what="it is back"
    )


def test_a_cut_between_here_and_the_master_is_not_the_masters_fault(
    patient: NetworkPatient,
) -> None:
    with rule(patient, f"ip daddr {FROM_HERE} tcp dport {patient.master_port} drop"):
        answer = patient.examine(code=3)
    assert root(answer) == ("network", "reachable", "master")
    assert "the gateway reaches it" in answer["root"]["evidence"]
