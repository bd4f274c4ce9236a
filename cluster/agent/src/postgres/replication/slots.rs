//! Replication slots: what they are called, which are to be, and making it so.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use leaderpool::patroni::Lsn;

use crate::postgres::session::{ServerState, Session, SessionError, SlotState};

/// The longest that PostgreSQL lets a slot's name be.
const LONGEST: usize = 63;

/// The name of a member's slot: lower case, with `-` and `.` as `_`, and whatever else a slot may not be called by
/// its number.
#[must_use]
pub fn slot_name_of(member: &str) -> String {
    let mut name = String::new();
    for c in member.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' | '_' => name.push(c),
            '-' | '.' => name.push('_'),
            other => {
                let _ = write!(name, "u{:04}", u32::from(other));
            }
        }
    }
    name.truncate(LONGEST);
    name
}

/// What is to be done about the slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotPlan {
    /// To be made, and to reserve WAL at once.
    pub create: Vec<String>,
    /// To be dropped: not wanted, and not in use.
    pub drop: Vec<String>,
    /// To be moved forward.
    pub advance: Vec<(String, Lsn)>,
    /// Wanted, but there is one of another kind with that name.
    pub blocked: Vec<String>,
}

impl SlotPlan {
    /// Compares what is with what is wanted: by name, the physical slots that are to be, and up to where each may be
    /// moved (none: it is used, and moves by itself). `keep` names slots that are nobody's business here.
    /// Logical and temporary slots are never touched.
    #[must_use]
    pub fn make(
        state: &ServerState,
        wanted: &BTreeMap<String, Option<Lsn>>,
        keep: impl Fn(&SlotState) -> bool,
    ) -> Self {
        let mut plan = Self::default();
        let find = |name: &str| state.slots.iter().find(|slot| slot.name == name);
        for slot in state.slots.iter().filter(|slot| slot.is_physical()) {
            let lost = slot.wal_status.as_deref() == Some("lost");
            let is_wanted = wanted.contains_key(&slot.name);
            if !slot.active && !keep(slot) && (!is_wanted || lost) {
                plan.drop.push(slot.name.clone());
            }
        }
        for (name, target) in wanted {
            match find(name) {
                None => plan.create.push(name.clone()),
                Some(slot) if !slot.is_physical() => plan.blocked.push(name.clone()),
                Some(_) if plan.drop.contains(name) => plan.create.push(name.clone()),
                Some(slot) => {
                    // Beyond its own position a server cannot move a slot, nor back.
                    let most = state.replayed.or(state.flush).unwrap_or_default();
                    let target = target.map(|t| t.min(most));
                    if let (Some(target), Some(restart)) = (target, slot.restart)
                        && !slot.active
                        && target > restart
                    {
                        plan.advance.push((name.clone(), target));
                    }
                }
            }
        }
        plan
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.drop.is_empty() && self.advance.is_empty()
    }
}

impl Session {
    /// Makes a physical slot that reserves WAL at once; says whether it was made, or was there.
    ///
    /// # Errors
    /// When it cannot be made: all are in use (`max_replication_slots`), or the server does not answer.
    pub async fn create_slot(&self, name: &str) -> Result<bool, SessionError> {
        let sql = "SELECT pg_catalog.pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS \
                   (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)";
        Ok(!self.rows("create a replication slot", sql, &[&name]).await?.is_empty())
    }

    /// Drops a physical slot that is not in use; says whether it was dropped.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn drop_slot(&self, name: &str) -> Result<bool, SessionError> {
        let sql = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
                   FROM pg_catalog.pg_replication_slots \
                   WHERE slot_name = $1 AND slot_type = 'physical' AND NOT active";
        Ok(!self.rows("drop a replication slot", sql, &[&name]).await?.is_empty())
    }

    /// Moves a physical slot forward, so that it keeps less WAL.
    ///
    /// # Errors
    /// When it is in use, has reserved nothing, or the server does not answer.
    pub async fn advance_slot(&self, name: &str, to: Lsn) -> Result<(), SessionError> {
        let sql = "SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2::text::pg_lsn) \
                   FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND NOT active";
        self.rows("advance a replication slot", sql, &[&name, &to.to_string()]).await.map(|_| ())
    }

    /// Carries a plan out. One slot's failure does not hold up the others; what failed is returned.
    pub async fn apply_slots(&self, plan: &SlotPlan) -> Vec<(String, SessionError)> {
        let mut failed = Vec::new();
        for name in &plan.drop {
            match self.drop_slot(name).await {
                Ok(true) => tracing::info!(slot = name, "dropped a replication slot"),
                Ok(false) => {}
                Err(error) => failed.push((name.clone(), error)),
            }
        }
        for name in &plan.create {
            match self.create_slot(name).await {
                Ok(true) => tracing::info!(slot = name, "created a replication slot"),
                Ok(false) => {}
                Err(error) => failed.push((name.clone(), error)),
            }
        }
        for (name, to) in &plan.advance {
            if let Err(error) = self.advance_slot(name, *to).await {
                failed.push((name.clone(), error));
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_patronis_rule() {
        for (member, slot) in [
            ("pg1", "pg1"),
            ("PG-Node.1", "pg_node_1"),
            ("a b", "au0032b"),
            ("ñ", "u0241"),
            ("x_y", "x_y"),
        ] {
            assert_eq!(slot_name_of(member), slot, "{member}");
        }
        assert_eq!(slot_name_of(&"a".repeat(80)).len(), 63);
        assert_eq!(slot_name_of(&"é".repeat(80)).len(), 63);
    }

    fn slot(name: &str) -> SlotState {
        SlotState {
            name: name.into(),
            kind: "physical".into(),
            plugin: None,
            database: None,
            temporary: false,
            active: false,
            restart: Some(Lsn(100)),
            confirmed_flush: None,
            xmin: None,
            catalog_xmin: None,
            wal_status: Some("reserved".into()),
            failover: false,
        }
    }

    fn state(slots: Vec<SlotState>) -> ServerState {
        let text = r#"{"system_id":"1","version":150018,"started":"","started_epoch":0,"in_recovery":true,
            "timeline":1,"checkpoint_timeline":1,"write":null,"flush":null,"received":null,"replayed":500,
            "replayed_at":null,"replay_paused":false,"receiver":null,"senders":[],"slots":[],
            "synchronous_standby_names":"","synchronous_commit":"on","restore_command":""}"#;
        ServerState { slots, ..serde_json::from_str(text).unwrap() }
    }

    fn plan(slots: Vec<SlotState>, wanted: &[(&str, Option<u64>)]) -> SlotPlan {
        let wanted = wanted.iter().map(|(n, lsn)| ((*n).to_owned(), lsn.map(Lsn))).collect();
        SlotPlan::make(&state(slots), &wanted, |slot| slot.name == "kept")
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_not_wanted_dropped() {
        let made =
            plan(vec![slot("old"), slot("kept"), slot("pg1")], &[("pg1", None), ("pg2", None)]);
        assert_eq!((made.create, made.drop), (vec!["pg2".to_owned()], vec!["old".to_owned()]));
        assert!(plan(vec![slot("pg1")], &[("pg1", None)]).is_empty());
    }

    #[test]
    fn what_is_in_use_logical_or_temporary_is_left_alone() {
        let active = SlotState { active: true, ..slot("a") };
        let logical = SlotState { kind: "logical".into(), ..slot("b") };
        let temporary = SlotState { temporary: true, ..slot("c") };
        let made = plan(vec![active, logical.clone(), temporary], &[]);
        assert!(made.is_empty(), "{made:?}");
        assert_eq!(plan(vec![logical], &[("b", None)]).blocked, ["b"]);
    }

    #[test]
    fn slots_move_forward_only_and_not_beyond_what_was_replayed() {
        let to = |target| plan(vec![slot("pg1")], &[("pg1", Some(target))]).advance;
        assert_eq!(to(300), [("pg1".to_owned(), Lsn(300))]);
        assert_eq!(to(900), [("pg1".to_owned(), Lsn(500))]);
        assert_eq!(to(100), []);
        let unreserved = SlotState { restart: None, ..slot("pg1") };
        assert!(plan(vec![unreserved], &[("pg1", Some(300))]).is_empty());
    }

    #[test]
    fn one_that_has_lost_its_wal_is_made_anew() {
        let lost = SlotState { wal_status: Some("lost".into()), ..slot("pg1") };
        let made = plan(vec![lost], &[("pg1", None)]);
        assert_eq!((made.create, made.drop), (vec!["pg1".to_owned()], vec!["pg1".to_owned()]));
    }
}
