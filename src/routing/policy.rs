//! How fresh a read must be, and what to do where no replica is.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::pick::keep_passable;
use crate::config::{ReadConfig, WhenNone};
use crate::token::CausalToken;
use crate::topology::{ClusterView, MemberHealth, MemberView};

/// How fresh the data must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Freshness {
    /// Any replica that answers.
    #[default]
    Any,
    /// A replica within these bounds; `None` is no bound.
    Behind {
        /// At most this old.
        time: Option<Duration>,
        /// At most this many bytes of WAL behind.
        bytes: Option<u64>,
    },
    /// A server that has what this token's writer had.
    After(CausalToken),
    /// The leader only.
    Leader,
}

/// How long a read with a token waits for a replica before it takes the leader.
const PATIENCE: Duration = Duration::from_millis(50);

/// Where a read may go.
///
/// ```
/// # use std::time::Duration;
/// # use leaderpool::ReadPolicy;
/// let policy = ReadPolicy::at_most_behind(Duration::from_secs(1)).or_wait().prefer_tag("zone", "b");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadPolicy {
    pub(crate) freshness: Freshness,
    pub(crate) when_none: WhenNone,
    pub(crate) prefer_tag: Option<(String, String)>,
    /// Of reads with a token.
    pub(crate) patience: Option<Duration>,
}

impl ReadPolicy {
    /// Any replica; the leader where there is none.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// The leader only: reads what was committed last, at the price of its load.
    #[must_use]
    pub fn leader() -> Self {
        Self { freshness: Freshness::Leader, ..Self::default() }
    }

    /// A replica known to hold everything committed up to `bound` ago; the leader where there is none.
    ///
    /// The bound holds when the connection is handed out. It is proved by the members' own positions and
    /// needs no clocks that agree. Bounds below 100 ms are met by the leader mostly.
    #[must_use]
    pub fn at_most_behind(bound: Duration) -> Self {
        Self { freshness: Freshness::Behind { time: Some(bound), bytes: None }, ..Self::default() }
    }

    /// A replica at most `bytes` of WAL behind the leader when both were last asked; the leader where
    /// there is none.
    #[must_use]
    pub fn at_most_bytes_behind(bytes: u64) -> Self {
        Self { freshness: Freshness::Behind { time: None, bytes: Some(bytes) }, ..Self::default() }
    }

    /// A server that has what the token's writer had: read-your-writes, across connections, processes and
    /// failovers. A replica is asked whether it has replayed that far, and given 50 ms to; then it is the
    /// leader's turn. With [`or_wait`](Self::or_wait) it is waited for to the call's deadline, with
    /// [`or_error`](Self::or_error) not at all.
    #[must_use]
    pub fn after(token: CausalToken) -> Self {
        Self { freshness: Freshness::After(token), ..Self::default() }
    }

    /// Give a replica this long to replay up to the token, instead of 50 ms.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Go to the leader where no replica qualifies. The default.
    #[must_use]
    pub fn or_leader(mut self) -> Self {
        self.when_none = WhenNone::Leader;
        self
    }

    /// Wait for a replica that qualifies, to the call's deadline.
    #[must_use]
    pub fn or_wait(mut self) -> Self {
        self.when_none = WhenNone::Wait;
        self
    }

    /// Fail at once where no replica qualifies.
    #[must_use]
    pub fn or_error(mut self) -> Self {
        self.when_none = WhenNone::Error;
        self
    }

    /// Prefer members whose tag `name` has this value (a zone, say), while any of them qualifies.
    #[must_use]
    pub fn prefer_tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.prefer_tag = Some((name.into(), value.into()));
        self
    }

    /// The policy of the `[read]` section.
    #[must_use]
    pub fn from_config(config: &ReadConfig) -> Self {
        let freshness = match (config.max_behind, config.max_bytes_behind) {
            (None, None) => Freshness::Any,
            (time, bytes) => Freshness::Behind { time, bytes },
        };
        let prefer_tag = config
            .prefer_tag
            .as_deref()
            .and_then(|tag| tag.split_once('='))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
        Self { freshness, when_none: config.when_none, prefer_tag, patience: None }
    }

    /// The bound on staleness, where there is one.
    pub(crate) fn time_bound(&self) -> Option<Duration> {
        match self.freshness {
            Freshness::Behind { time, .. } => time,
            Freshness::Any | Freshness::Leader | Freshness::After(_) => None,
        }
    }

    pub(crate) fn token(&self) -> Option<CausalToken> {
        match self.freshness {
            Freshness::After(token) => Some(token),
            Freshness::Any | Freshness::Leader | Freshness::Behind { .. } => None,
        }
    }

    /// How long one replica may take to replay up to the token.
    pub(crate) fn replica_patience(&self) -> Duration {
        match self.when_none {
            WhenNone::Leader => self.patience.unwrap_or(PATIENCE),
            WhenNone::Wait => self.patience.unwrap_or(Duration::MAX),
            WhenNone::Error => Duration::ZERO,
        }
    }
}

/// Why a member does not qualify for a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "because")]
#[non_exhaustive]
pub enum Ineligible {
    /// It leads, or is about to.
    Leads,
    /// It carries the tag `noloadbalance`.
    NoLoadBalance,
    /// It was not asked yet.
    NotProbed,
    /// It does not answer.
    Down {
        /// The last failure.
        error: String,
    },
    /// It must not be used.
    Refused {
        /// Why.
        reason: String,
    },
    /// It is out of recovery without the leader key.
    NotReplica,
    /// Nothing proves how fresh it is: it follows another timeline, or has not caught up with a known
    /// position of the leader yet.
    FreshnessUnknown,
    /// It is too far behind, in time.
    TooOld {
        /// By how much it is known to be behind at most, in milliseconds.
        behind_ms: u64,
    },
    /// It has not replayed the token's position.
    BehindToken,
    /// It is too far behind, in bytes.
    TooFarBehind {
        /// By how much.
        bytes: u64,
    },
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ineligible::Leads => f.write_str("leads"),
            Ineligible::NoLoadBalance => f.write_str("has the tag noloadbalance"),
            Ineligible::NotProbed => f.write_str("was not asked yet"),
            Ineligible::Down { error } => write!(f, "does not answer: {error}"),
            Ineligible::Refused { reason } => write!(f, "must not be used: {reason}"),
            Ineligible::NotReplica => f.write_str("is out of recovery without the leader key"),
            Ineligible::FreshnessUnknown => f.write_str("is of unknown freshness"),
            Ineligible::TooOld { behind_ms } => write!(f, "is up to {behind_ms} ms behind"),
            Ineligible::BehindToken => f.write_str("has not replayed the token's position"),
            Ineligible::TooFarBehind { bytes } => write!(f, "is {bytes} bytes behind"),
        }
    }
}

/// What a read does now.
#[derive(Debug, PartialEq)]
pub(crate) enum ReadChoice<'a> {
    /// One of these replicas.
    Replicas {
        /// Not empty.
        members: Vec<&'a MemberView>,
        /// Whether they are here though their breakers refuse: there is nobody else.
        last_resort: bool,
    },
    /// The leader, as a write would find it.
    Leader,
    /// Wait for the view to change.
    Wait(Vec<(String, Ineligible)>),
    /// No replica, and the policy wants no other way.
    Refuse(Vec<(String, Ineligible)>),
}

/// Where a read under `policy` goes. Members that `passes` refuses, and those in `avoid`, are passed over
/// while others qualify; the former also while there is a leader that the read may go to.
pub(crate) fn choose_read<'a>(
    view: &'a ClusterView,
    policy: &ReadPolicy,
    avoid: &[String],
    passes: impl Fn(&str) -> bool,
    now: Instant,
) -> ReadChoice<'a> {
    if policy.freshness == Freshness::Leader {
        return ReadChoice::Leader;
    }
    let mut eligible = Vec::new();
    let mut reasons = Vec::new();
    for member in view.members.values() {
        match ineligible(view, member, policy.freshness, now) {
            None => eligible.push(member),
            Some(reason) => reasons.push((member.name.clone(), reason)),
        }
    }
    let last_resort = keep_passable(&mut eligible, |member| passes(&member.name));
    if last_resort && policy.when_none == WhenNone::Leader && view.leader.admitted().is_some() {
        return ReadChoice::Leader;
    }
    narrow(&mut eligible, |member| !avoid.contains(&member.name));
    if let Some((name, value)) = &policy.prefer_tag {
        narrow(&mut eligible, |member| {
            member.tags.other.get(name).is_some_and(|tag| match tag.as_str() {
                Some(text) => text == value,
                None => {
                    let text = tag.to_string();
                    text == *value
                }
            })
        });
    }
    if !eligible.is_empty() {
        return ReadChoice::Replicas { members: eligible, last_resort };
    }
    match policy.when_none {
        WhenNone::Leader => ReadChoice::Leader,
        WhenNone::Wait => ReadChoice::Wait(reasons),
        WhenNone::Error => ReadChoice::Refuse(reasons),
    }
}

/// Keeps those that satisfy `wish`, unless nothing would be left.
fn narrow(members: &mut Vec<&MemberView>, wish: impl Fn(&MemberView) -> bool) {
    if members.iter().any(|member| wish(member)) {
        members.retain(|member| wish(member));
    }
}

fn ineligible(
    view: &ClusterView,
    member: &MemberView,
    freshness: Freshness,
    now: Instant,
) -> Option<Ineligible> {
    if view.leader.named() == Some(&member.name) {
        return Some(Ineligible::Leads);
    }
    if member.tags.noloadbalance {
        return Some(Ineligible::NoLoadBalance);
    }
    let report = match &member.health {
        MemberHealth::Unknown => return Some(Ineligible::NotProbed),
        MemberHealth::Down { error, .. } => {
            return Some(Ineligible::Down { error: error.clone() });
        }
        MemberHealth::Refused(refusal) => {
            return Some(Ineligible::Refused { reason: refusal.to_string() });
        }
        MemberHealth::Up(report) => report,
    };
    if !report.in_recovery {
        return Some(Ineligible::NotReplica);
    }
    // Whether it has replayed a token is for the server itself to say; probes are too old to.
    let Freshness::Behind { time, bytes } = freshness else { return None };
    if let Some(bound) = time {
        let Some(staleness) = member.staleness(now) else {
            return Some(Ineligible::FreshnessUnknown);
        };
        if staleness > bound {
            let behind_ms = u64::try_from(staleness.as_millis()).unwrap_or(u64::MAX);
            return Some(Ineligible::TooOld { behind_ms });
        }
    }
    if let Some(bound) = bytes {
        match member.lag_bytes {
            None => return Some(Ineligible::FreshnessUnknown),
            Some(lag) if lag > bound => return Some(Ineligible::TooFarBehind { bytes: lag }),
            Some(_) => {}
        }
    }
    None
}
