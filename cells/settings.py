"""A cell's settings: read once in serve.py and relay.py, passed down in parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlencode

from pydantic import TypeAdapter

from cells.channels.model import ChannelSettings
from router.client.tls import TlsFiles
from router.documents import BadSettings, read_document
from router.tracing.model import TracingSettings


@dataclass(frozen=True, slots=True)
class LaneSettings:
    # Groups that may commit at once. One process has one processor's worth of Python, and one lane
    # makes the largest groups of it (docs/decisions/0007-one-lane-several-servers.md).
    count: int = 1
    # Commands a group: past some hundreds it adds latency and no throughput.
    batch_size_max: int = 512
    # While commands keep coming, a group grows for so long at the most; a lone one does not wait.
    gather_max_s: float = 0.004
    # Each look wakes the process, and shorter steps make smaller groups: both cost more than they
    # save.
    gather_step_s: float = 0.002
    # Commands that may wait; more are refused with RESOURCE_EXHAUSTED before latency explodes.
    queue_max: int = 4096
    # A command without a deadline of its own waits this long for a database that is away.
    deadline_default_s: float = 10.0


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    # A paused cell's open transaction ends after this, so that its locks cannot block a failover
    # (pitfall 6); the server counts, not the cell.
    idle_in_transaction_timeout_ms: int = 1000
    # The same for a cell that is paused in the middle of a message: the server then waits for the
    # rest, which neither that limit nor the statement's ends.
    transaction_timeout_ms: int = 5000
    lock_timeout_ms: int = 4000
    statement_timeout_ms: int = 10_000
    # Connections for reads, beside one a lane.
    read_pool_size: int = 6


@dataclass(frozen=True, slots=True)
class TransferSettings:
    # A try that has no answer after this is cancelled (presumed abort).
    try_timeout_s: float = 10.0
    # One call to a participant.
    branch_call_timeout_s: float = 3.0
    # How often the recovery looks for transfers that nobody drives.
    recovery_interval_s: float = 1.0
    # A transfer untouched for this long has lost its driver.
    recovery_age_s: float = 5.0
    # Transfers recovered at once.
    recovery_concurrency_max: int = 32


@dataclass(frozen=True, slots=True)
class SettlementSettings:
    # How often collection accounts are swept to the merchants' homes.
    interval_s: float = 30.0
    sweep_concurrency_max: int = 32


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    # Rows read and published at once; each holds up to 128 events.
    rows_max: int = 64
    poll_interval_s: float = 0.1
    # Sent rows are kept this long, so that a lost stream can be replayed.
    retention_s: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    timeout_s: float = 5.0
    attempts_max: int = 12
    # First delay after a failure; doubles to the cap, with full jitter.
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 3600.0
    poll_interval_s: float = 0.25
    concurrency_max: int = 16


@dataclass(frozen=True, slots=True)
class BankingSettings:
    """Charges, their refunds and payouts: how patient a cell is with banks."""

    # A bank has so long for the answer to one request.
    answer_timeout_s: float = 15.0
    # A request leaves so soon after it was written down, or never: what recovery asks about later
    # cannot still leave from a process that was paused meanwhile (pitfall 6).
    send_window_s: float = 5.0
    # CreateCharge and CreatePayout wait so long for the end, if their callers do.
    wait_max_s: float = 20.0
    # Another channel is asked only while the charge is younger, and at most so often.
    route_within_s: float = 30.0
    attempts_max: int = 4
    # A charge that is unknown for longer is reversed; one that the bank has, later.
    reverse_after_s: float = 60.0
    pending_max_s: float = 900.0
    # A payout that no channel takes is given up after this.
    payout_patience_s: float = 3600.0
    # A refund or payout whose bank failed cleanly, or that was deferred, is tried again after this.
    held_retry_s: float = 30.0
    # Between questions about an unknown: half its age, within these.
    backoff_base_s: float = 2.0
    backoff_cap_s: float = 300.0
    # What is unknown for longer is logged as an error, at every question.
    alarm_after_s: float = 600.0
    recovery_interval_s: float = 1.0
    # Questions that recovery asks one bank at once: a bank that is silent holds up only its own.
    recovery_concurrency_max: int = 32
    # Charges, refunds and payouts that wait for banks; more are refused.
    in_flight_max: int = 2048


@dataclass(frozen=True, slots=True)
class VaultSettings:
    # The local KMS's file of master keys (cells/vault/keystore.py), the same for every cell of the
    # mesh; empty: the vault stays shut.
    keystore: str = ""
    # A table of BINs of the operator's own; empty: the package's.
    bins: str = ""
    # How often each cell looks whether keys of its slots are to be replaced.
    look_interval_s: float = 30.0
    # Rows that are sealed anew in one commit, and the pause after it: rotation waits for payments.
    batch_size_max: int = 64
    pause_s: float = 0.05


@dataclass(frozen=True, slots=True)
class RiskSettings:
    # A request waits so long for risk; then the rules' `fail_open` says whether it goes on. Long
    # beside the milliseconds that a decision takes: a cell at its limit queues, it does not refuse.
    screening_timeout_ms: int = 1000
    # Of this, so long for the features; then conservative rules decide.
    features_wait_ms: int = 20
    # Requests that are judged together, groups that are under way at once, and requests that may
    # wait.
    batch_size_max: int = 128
    groups_max: int = 3
    queue_max: int = 4096
    # In a process that is busy a group waits until none is under way, and then grows while requests
    # keep coming, for so long at the most, as a lane's does (cells/risk/patience.py).
    gather_max_s: float = 0.004
    gather_step_s: float = 0.002
    # A challenge is open for so long, and once passed waits so long for its request.
    challenge_ttl_s: int = 300
    passed_ttl_s: int = 300
    # The same of a review, which waits for a person.
    review_ttl_s: int = 7 * 86_400
    approved_ttl_s: int = 86_400
    # SPIFFE IDs whose payments by the batch and by the stream are not screened: they screen
    # themselves, or pay out what was screened before.
    unscreened_bulk_callers: tuple[str, ...] = ()
    # Decisions other than allow, and cases that have ended, are forgotten after this; 0: never. A
    # request whose rejected case was forgotten is judged anew.
    retention_s: float = 400 * 86_400.0


@dataclass(frozen=True, slots=True)
class LeavingSettings:
    """What a cell does when it is told to end (SIGTERM)."""

    # Its slots are moved away first, and for so long it waits for that; 0: it just ends, and a
    # failover follows. A pod's terminationGracePeriodSeconds must be longer than both together.
    grace_s: float = 0.0
    # Then calls that are under way may end; a charge waits for its bank.
    empty_max_s: float = 30.0
    # Nobody has called for so long: clients have heard of the slots' new homes.
    quiet_s: float = 1.0


@dataclass(frozen=True, slots=True)
class ElasticitySettings:
    """How many processes a cell has, by load. Targets are what it is sized for, not limits."""

    # 0: as many as `workers` says, whatever the load.
    workers_max: int = 0
    workers_min: int = 1
    # Of each process's processor: the rest is for what comes while another one starts.
    cpu_percent: float = 60.0
    # How long a command waits for its group, in the process where it waits longest.
    queue_delay_ms: float = 20.0
    look_interval_s: float = 1.0
    # For how long, without a break, the load must ask for more …
    raise_after_s: float = 2.0
    # … and how long one process less must have been enough, by `relief` of every target.
    lower_after_s: float = 300.0
    relief: float = 0.7
    # A process that leaves ends when nobody has called it for so long …
    quiet_s: float = 2.0
    # … and after this in any case: streams have no end of their own. A charge waits for its bank
    # for up to `banking.wait_max_s`.
    leave_max_s: float = 60.0
    # Merchants that a process has read before the mesh hears of it.
    warm_merchants_max: int = 10_000


@dataclass(frozen=True, slots=True)
class CellSettings:
    cell: str
    region: str
    listen: str
    database_url: str
    # host:port of each member, with commas between.
    etcd: str
    # nats:// or tls://, and redis:// or rediss://; TLS checks the server's certificate and name.
    nats_url: str
    redis_url: str
    tls: TlsFiles
    xds_bootstrap: str
    # Shown to etcd, whose user is the certificate's common name; without, etcd has no TLS.
    etcd_tls: TlsFiles | None = None
    # Shown to NATS and to Redis, whose CA it names; without, the system's CAs are believed and
    # nothing is shown.
    nats_tls: TlsFiles | None = None
    redis_tls: TlsFiles | None = None
    # Shorter finds a death sooner; longer forgives a busy machine. etcd's own minimum is 2 s.
    lease_ttl_s: int = 3
    # True allows webhooks to private addresses and plain http: a laptop has no others.
    development: bool = False
    # A streaming replica of PostgreSQL for reads that may be old; empty: there is none. CockroachDB
    # reads from its followers without.
    replica_url: str = ""
    # host:port where kubelets ask the first process, and the relay; empty: nowhere.
    probe_listen: str = ""
    relay_probe_listen: str = ""
    # Processes, each with its own listener and lane. The first is the cell itself; the others end
    # with it. The mesh sends a slot always to the same one while they all live. With elasticity
    # it is what the cell begins with.
    workers: int = 1
    # Where networks let only named ports through: the first of those further processes listens on
    # this one, the next one on the next. 0: on any that is free.
    worker_port: int = 0
    elasticity: ElasticitySettings = field(default_factory=ElasticitySettings)
    leaving: LeavingSettings = field(default_factory=LeavingSettings)
    # gRPC servers on the one port: calls that are taken in a turn of the event loop.
    servers: int = 8
    lanes: LaneSettings = field(default_factory=LaneSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    transfers: TransferSettings = field(default_factory=TransferSettings)
    settlement: SettlementSettings = field(default_factory=SettlementSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    banking: BankingSettings = field(default_factory=BankingSettings)
    # The banks that it reaches; empty: it takes no charges and no payouts.
    channels: tuple[ChannelSettings, ...] = ()
    # Names (without port, in lower case) that merchants sign requests for: what was signed for a
    # test system is refused. Empty: any.
    signed_hosts: tuple[str, ...] = ()
    vault: VaultSettings = field(default_factory=VaultSettings)
    risk: RiskSettings = field(default_factory=RiskSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)


def read_settings(path: Path) -> CellSettings:
    """Raises BadSettings, ValidationError, OSError."""
    settings = TypeAdapter(CellSettings).validate_json(read_document(path))
    if settings.redis_tls is None:
        return settings
    # In the URL: whoever connects to Redis need not know of TLS.
    return replace(settings, redis_url=with_tls(settings.redis_url, settings.redis_tls))


def with_tls(redis_url: str, tls: TlsFiles) -> str:
    """The URL with the files as redis-py reads them. Raises BadSettings."""
    if not redis_url.startswith("rediss://"):
        raise BadSettings("redis_tls: redis_url must begin with rediss://")
    files = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    given = {**files, "ssl_cert_reqs": "required", "ssl_check_hostname": "true"}
    return f"{redis_url}{'&' if '?' in redis_url else '?'}{urlencode(given)}"
