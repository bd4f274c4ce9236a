//! What is seen of the own server, and the memory of what was begun with it.

use leaderpool::patroni::{Lsn, SystemId, Timeline};

use crate::decide::moment::Moment;
use crate::decide::sync::SyncNames;

/// What is in the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Nothing, or nothing that can be used.
    Empty,
    /// A cluster with this system identifier.
    Present(SystemId),
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is made, the standbys get everything.
    Fast,
    /// It is dropped as it stands, and recovers from its WAL at the next start.
    Immediate,
    /// SIGKILL, to the postmaster and to every process of it.
    Kill,
}

/// Where a standby gets its WAL from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// From nowhere.
    Nobody,
    /// From a member.
    Member(String),
    /// From the cluster that this one is a standby of.
    Remote,
}

/// The state of the own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// No process.
    Down {
        /// Since when.
        since: Moment,
        /// Whether the last attempt to start it failed.
        start_failed: bool,
    },
    /// It does not take connections yet.
    Starting {
        /// Since when.
        since: Moment,
        /// Whether it will take writes when it does.
        as_primary: bool,
    },
    /// It takes writes.
    Primary {
        /// Its timeline.
        timeline: Timeline,
        /// What it has written.
        written: Lsn,
    },
    /// It replays.
    Standby {
        /// The timeline that it receives, or replays.
        timeline: Timeline,
        /// The greater of what it has received and replayed.
        received: Lsn,
        /// Where it is told to get its WAL from.
        upstream: Upstream,
        /// When its WAL receiver was last seen not to stream, where it does not.
        stream_lost: Option<Moment>,
    },
    /// It was told to stop and has not ended yet.
    Stopping {
        /// Since when.
        since: Moment,
        /// How, at the last.
        mode: StopMode,
        /// Whether it took writes before.
        was_primary: bool,
    },
}

/// The state in the control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlState {
    /// A primary that runs, or has crashed.
    InProduction,
    /// A primary that was shut down in order: nothing is written any more, whatever still runs.
    ShutDown,
    /// A standby that runs, or has crashed.
    InRecovery,
    /// A standby that was shut down in order.
    ShutDownInRecovery,
}

/// The control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// The state.
    pub state: ControlState,
    /// The timeline of the last checkpoint.
    pub timeline: Timeline,
    /// The position of the last checkpoint: of the one at shutdown, after a shutdown.
    pub checkpoint: Lsn,
    /// Whether the data are a base backup that was never started.
    pub backup_label: bool,
}

/// Whether the data can follow the present leader on its present timeline. Back to
/// [`Unknown`](Rewind::Unknown) when either changes, and when the own server has taken writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewind {
    /// Nobody has looked.
    Unknown,
    /// They can.
    NotNeeded,
    /// They go beyond the point where the leader's timeline began.
    Needed,
    /// They do, and rewinding them failed, for this reason.
    Failed(String),
}

/// The own server and its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    /// The data directory.
    pub data: Data,
    /// The server.
    pub server: Server,
    /// The control file, where it was read since the server ended or began to stop.
    pub control: Option<Control>,
    /// Whether the data can follow the leader.
    pub rewind: Rewind,
    /// When that was last looked at, or rewinding was last tried.
    pub rewind_tried: Option<Moment>,
    /// How often the server ended without having been told to, since it last ran for
    /// `primary_start_timeout`.
    pub crashes: u32,
    /// When a promotion last failed.
    pub promote_failed: Option<Moment>,
    /// The standbys that are connected, where it is a primary; the last ones, where it just ended.
    pub standbys: Vec<StandbyRow>,
    /// What it is told to wait for at commit.
    pub names: NamesInEffect,
}

/// A row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyRow {
    /// The member (`application_name`).
    pub name: String,
    /// Whether its state is `streaming`.
    pub streaming: bool,
    /// Whether PostgreSQL counts it among those that commits wait for (`sync_state` is `sync` or `quorum`).
    pub counted: bool,
    /// What it has flushed.
    pub flushed: Lsn,
}

/// `synchronous_standby_names`, as it is in effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamesInEffect {
    /// The value.
    pub names: SyncNames,
    /// The value in the configuration file, where it is another: it was set, and is not in effect yet.
    pub set: Option<SyncNames>,
    /// What the primary had flushed when the value was first seen to be in effect; `None` before that, and
    /// again after each start.
    pub since: Option<Lsn>,
}

/// The watchdog device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Watchdog {
    /// None is configured.
    #[default]
    Off,
    /// It works, or it is not required to.
    Ready,
    /// It is required and does not work.
    Missing,
}

/// A kind of work on the own server that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A cluster is being made.
    Bootstrap,
    /// The data are being copied from elsewhere.
    Clone,
    /// The server is being promoted. A process that begins anew must know of it: it is noted beside the data
    /// before it is ordered, for an order that was given is carried out, whoever has died meanwhile.
    Promote,
    /// The server is being restarted, as an operator asked.
    Restart,
    /// It is being found out whether the data can follow the leader.
    CheckRewind,
    /// The data are being rewound.
    Rewind,
    /// The server recovers alone, so that its data can be rewound.
    CrashRecover,
}

/// A piece of work that was begun and has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    /// Which.
    pub work: Work,
    /// Since when.
    pub since: Moment,
}

/// Why the leader key is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoverWhy {
    /// An operator asked for another leader: nothing may be lost, else it is called off.
    Switchover,
    /// The agent stops.
    Shutdown,
    /// The server does not come up, or does not run well.
    GiveUp,
}

/// A handing over of the leader key that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// To whom; `None` where nobody is fit.
    pub to: Option<String>,
    /// Why.
    pub why: HandoverWhy,
    /// Since when.
    pub since: Moment,
}
