//! Which standbys commits wait for, and who may take over because of it.
//!
//! Two places hold the synchronous state: the key `sync` says who may take over, `synchronous_standby_names`
//! says what a commit waits for. They cannot be changed at once, and the agent may die between any two
//! steps; so every step keeps to one rule. With *S* and *q* the standbys and the quorum in the key, and *k*
//! of *N* standbys that every acknowledged commit is on:
//!
//! > *S* is empty, or |*S* ∪ *N*| ≤ *q* + *k*.
//!
//! Whoever takes over knows itself and *q* more of *S* and the leader, none of them ahead of it; more than
//! |*S* ∪ *N*| − *k* of them must be among those that hold any one commit. Without quorum *q* is zero, and
//! the rule says that all of *S* are among *N*, and that commits wait for all of *N*.
//!
//! A new value of `synchronous_standby_names` holds for the commits to come. For those before, it is *confirmed*
//! when *k* of *N* have what had been flushed when the value came into effect. Until then the key may only be
//! changed towards more caution: fewer standbys, a greater quorum.
//!
//! One change at a time. What was sent may arrive late: a write of the key that nobody has answered is
//! settled by another one before the names are touched, and names that were set are waited for
//! before the key is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use leaderpool::patroni::{Lsn, SyncState};

use super::rank::sync_priority;
use super::seen::{MemberSeen, NamesInEffect, Seen, StandbyRow, SyncMode};

/// The value of `sync`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncKey {
    /// The leader that wrote it.
    pub leader: Option<String>,
    /// How many others of the standbys and the leader a standby must know not to be ahead of it.
    pub quorum: usize,
    /// The standbys.
    pub standbys: BTreeSet<String>,
}

impl SyncKey {
    /// The key that says that only `leader` may lead.
    #[must_use]
    pub fn only(leader: &str) -> Self {
        Self { leader: Some(leader.to_owned()), ..Self::default() }
    }
}

impl From<&SyncState> for SyncKey {
    fn from(state: &SyncState) -> Self {
        Self {
            leader: state.leader.clone(),
            quorum: usize::try_from(state.quorum).unwrap_or(usize::MAX),
            standbys: state.standbys().map(str::to_owned).collect(),
        }
    }
}

impl From<&SyncKey> for SyncState {
    fn from(key: &SyncKey) -> Self {
        let names = key.standbys.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        Self {
            leader: key.leader.clone(),
            quorum: u32::try_from(key.quorum).unwrap_or(u32::MAX),
            sync_standby: (!names.is_empty()).then_some(names),
        }
    }
}

/// The value of `synchronous_standby_names`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SyncNames {
    /// Commits wait for nobody.
    #[default]
    Nobody,
    /// They wait for one standby, whichever.
    Anyone,
    /// They wait for all of these (`FIRST`).
    All(BTreeSet<String>),
    /// They wait for as many of these (`ANY`).
    Some(usize, BTreeSet<String>),
    /// Something that this agent did not write: no rule is built on it.
    Foreign,
}

impl SyncNames {
    /// How many standbys every commit is on, and out of which; `None` where nothing is known.
    fn promise(&self) -> Option<(usize, &BTreeSet<String>)> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        match self {
            SyncNames::Nobody => Some((0, &NONE)),
            SyncNames::All(names) => Some((names.len(), names)),
            SyncNames::Some(count, names) => Some((*count, names)),
            SyncNames::Anyone | SyncNames::Foreign => None,
        }
    }

    /// The value that `text` is, where this agent wrote it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return SyncNames::Nobody;
        }
        if text == "*" {
            return SyncNames::Anyone;
        }
        let list = |rest: &str| -> Option<(usize, BTreeSet<String>)> {
            let (count, names) = rest.trim().split_once('(')?;
            let names = names.trim().strip_suffix(')')?.split(',').map(|name| {
                let name = name.trim();
                let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
                quoted.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""))
            });
            Some((count.trim().parse().ok()?, names.collect()))
        };
        let upper = text.to_ascii_uppercase();
        if upper.starts_with("FIRST ") {
            if let Some((count, names)) = list(&text[6..]).filter(|(count, n)| *count == n.len()) {
                debug_assert_eq!(count, names.len());
                return SyncNames::All(names);
            }
        } else if upper.starts_with("ANY ")
            && let Some((count, names)) = list(&text[4..])
        {
            return SyncNames::Some(count, names);
        }
        SyncNames::Foreign
    }
}

impl fmt::Display for SyncNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |names: &BTreeSet<String>| {
            let names = names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
            names.collect::<Vec<_>>().join(",")
        };
        match self {
            SyncNames::Nobody | SyncNames::Foreign => Ok(()),
            SyncNames::Anyone => f.write_str("*"),
            SyncNames::All(names) => write!(f, "FIRST {} ({})", names.len(), quoted(names)),
            SyncNames::Some(count, names) => write!(f, "ANY {count} ({})", quoted(names)),
        }
    }
}

/// The next step towards the synchronous standbys that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncStep {
    /// Nothing is left to do.
    Done,
    /// Wait until the standbys have what was flushed when the names came into effect.
    Confirm,
    /// Write the key, if it still has the revision that was seen.
    WriteKey(SyncKey),
    /// Delete the key, in the same way: synchronous mode is off.
    DeleteKey,
    /// Set `synchronous_standby_names` and reload.
    SetNames(SyncNames),
}

/// What a plan is made from.
#[derive(Debug, Clone)]
pub struct SyncView<'a> {
    /// The mode.
    pub mode: SyncMode,
    /// Whether commits wait even where there is no standby.
    pub strict: bool,
    /// How many standbys are wanted.
    pub count: usize,
    /// By how many bytes they may lag.
    pub max_lag: Option<u64>,
    /// The leader, which plans.
    pub me: &'a str,
    /// The key.
    pub key: Option<&'a SyncKey>,
    /// Whether no earlier write of the key can still arrive: [`SyncSeen::settled`](super::SyncSeen).
    pub settled: bool,
    /// What commits wait for.
    pub names: &'a NamesInEffect,
    /// The standbys that are connected.
    pub standbys: &'a [StandbyRow],
    /// The members.
    pub members: &'a BTreeMap<String, MemberSeen>,
    /// What the leader has flushed.
    pub flushed: Lsn,
}

/// Whether what the key allows is covered by what commits wait for.
#[must_use]
pub fn is_safe(key: &SyncKey, names: &SyncNames) -> bool {
    key.standbys.is_empty()
        || names
            .promise()
            .is_some_and(|(count, names)| key.standbys.union(names).count() <= key.quorum + count)
}

/// The next step.
#[must_use]
pub fn plan(view: &SyncView<'_>) -> SyncStep {
    if view.mode == SyncMode::Off {
        return if view.key.is_some() { SyncStep::DeleteKey } else { SyncStep::Done };
    }
    let none = SyncKey::only(view.me);
    let names = &view.names.names;
    let Some(key) = view.key.filter(|key| key.leader.as_deref() == Some(view.me)) else {
        return SyncStep::WriteKey(none);
    };
    if !view.settled {
        return SyncStep::WriteKey(key.clone());
    }
    let foreign = view.names.set == Some(SyncNames::Foreign);
    if !key.standbys.is_empty() && (foreign || !is_safe(key, names)) {
        // Not by a step of ours: someone else has changed the names.
        return SyncStep::WriteKey(none);
    }
    if let Some(set) = view.names.set.as_ref().filter(|set| **set != *names && !foreign) {
        // It was safe when it was set, and the key has only become more cautious since.
        return SyncStep::SetNames(set.clone());
    }
    let (goal, goal_names) = goal(view, key);
    if *key == goal && *names == goal_names {
        return SyncStep::Done;
    }
    let confirmed = is_confirmed(view);
    // Without standbys the leader's own vote is needed, whatever the quorum.
    let cautious = goal.standbys.is_empty()
        || (goal.standbys.is_subset(&key.standbys) && goal.quorum >= key.quorum);
    if *key != goal && is_safe(&goal, names) && (confirmed || cautious) {
        return SyncStep::WriteKey(goal);
    }
    if *names != goal_names {
        if is_safe(key, &goal_names) {
            return SyncStep::SetNames(goal_names);
        }
    } else if !confirmed {
        return SyncStep::Confirm;
    }
    detour(view, key, goal, &goal_names, confirmed)
}

/// Neither place can go straight to the goal: one more step between.
fn detour(
    view: &SyncView<'_>,
    key: &SyncKey,
    goal: SyncKey,
    goal_names: &SyncNames,
    confirmed: bool,
) -> SyncStep {
    let connected =
        |name: &String| view.standbys.iter().any(|row| row.streaming && row.name == *name);
    if view.mode == SyncMode::On && key.standbys.iter().all(connected) {
        // Wait for the old and the new, then the key, then for the new alone.
        let both = SyncNames::All(key.standbys.union(&goal.standbys).cloned().collect());
        if view.names.names != both {
            return SyncStep::SetNames(both);
        }
        return if confirmed { SyncStep::WriteKey(goal) } else { SyncStep::Confirm };
    }
    let stay: BTreeSet<String> = key.standbys.intersection(&goal.standbys).cloned().collect();
    if stay != key.standbys {
        return SyncStep::WriteKey(SyncKey { standbys: stay, ..key.clone() });
    }
    let (count, names) = goal_names.promise().unwrap_or((0, &goal.standbys));
    let quorum = key.standbys.union(names).count().saturating_sub(count);
    SyncStep::WriteKey(SyncKey { quorum: quorum.max(key.quorum), ..key.clone() })
}

/// Whether every commit so far is on as many standbys as the names say.
fn is_confirmed(view: &SyncView<'_>) -> bool {
    let Some((count, names)) = view.names.names.promise() else { return false };
    if count == 0 {
        return true;
    }
    let Some(since) = view.names.since else { return false };
    let has = |name: &String| {
        let row = view.standbys.iter().find(|row| row.name == *name);
        row.is_some_and(|row| row.streaming && row.counted && row.flushed >= since)
    };
    names.iter().filter(|name| has(name)).count() >= count
}

/// What key and names are to become.
fn goal(view: &SyncView<'_>, key: &SyncKey) -> (SyncKey, SyncNames) {
    let mut fit: Vec<&StandbyRow> = view
        .standbys
        .iter()
        .filter(|row| {
            let lag = view.flushed.bytes_since(row.flushed);
            let member = view.members.get(&row.name);
            row.streaming
                && row.name != view.me
                && member
                    .is_some_and(|member| !member.tags.nosync && sync_priority(&member.tags) > 0)
                && view.max_lag.is_none_or(|max_lag| lag <= max_lag)
        })
        .collect();
    let me = Some(view.me.to_owned());
    let count = view.count.max(1);
    if view.mode == SyncMode::On {
        // The present ones stay where nothing speaks for others.
        fit.sort_by(|a, b| {
            let priority = |row: &StandbyRow| {
                view.members.get(&row.name).map_or(1, |m| sync_priority(&m.tags))
            };
            let present = |row: &StandbyRow| key.standbys.contains(&row.name);
            (priority(b), present(b), b.flushed, &a.name).cmp(&(
                priority(a),
                present(a),
                a.flushed,
                &b.name,
            ))
        });
        fit.truncate(count);
    }
    let standbys: BTreeSet<String> = fit.iter().map(|row| row.name.clone()).collect();
    if standbys.is_empty() {
        let names = if view.strict { SyncNames::Anyone } else { SyncNames::Nobody };
        return (SyncKey::only(view.me), names);
    }
    if view.mode == SyncMode::On {
        let names = SyncNames::All(standbys.clone());
        (SyncKey { leader: me, quorum: 0, standbys }, names)
    } else {
        let count = count.min(standbys.len());
        let names = SyncNames::Some(count, standbys.clone());
        (SyncKey { leader: me, quorum: standbys.len() - count, standbys }, names)
    }
}

/// Whether a member may try to become leader, as far as the synchronous state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayRace {
    /// It has every acknowledged commit, or none is promised.
    Yes,
    /// So many of the standbys and the leader must say that they are not ahead of it.
    WithVotes(usize),
    /// It may lack acknowledged commits.
    No,
}

/// Whether this member may, going by the key rather than by the mode, which may have changed after it.
pub(super) fn may_race(seen: &Seen) -> MayRace {
    let Some(sync) = &seen.cluster.sync else { return MayRace::Yes };
    let (key, me) = (&sync.key, &seen.me.name);
    if seen.rules.synchronous_mode == SyncMode::Off
        || (key.leader.is_none() && key.standbys.is_empty())
        || key.leader.as_ref() == Some(me)
    {
        return MayRace::Yes;
    }
    match (key.standbys.contains(me), key.quorum) {
        (true, 0) => MayRace::Yes,
        (true, quorum) => MayRace::WithVotes(quorum),
        (false, quorum) if seen.rules.synchronous_mode == SyncMode::Quorum => {
            MayRace::WithVotes(quorum + 1)
        }
        (false, _) => MayRace::No,
    }
}

/// What the leader does next for the synchronous state.
pub(super) fn step(seen: &Seen, flushed: Lsn) -> SyncStep {
    plan(&SyncView {
        mode: seen.rules.synchronous_mode,
        strict: seen.rules.synchronous_mode_strict,
        count: seen.rules.synchronous_node_count,
        max_lag: seen.rules.maximum_lag_on_syncnode,
        me: &seen.me.name,
        key: seen.cluster.sync.as_ref().map(|sync| &sync.key),
        settled: seen.cluster.sync.as_ref().is_some_and(|sync| sync.settled),
        names: &seen.postgres.names,
        standbys: &seen.postgres.standbys,
        members: &seen.cluster.members,
        flushed,
    })
}
