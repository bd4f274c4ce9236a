//! The server's state, by one question.

use leaderpool::patroni::{Lsn, SystemId, Timeline};
use serde::Deserialize;

use super::{Session, SessionError};
use crate::postgres::binaries::Version;

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ServerState {
    /// The system identifier.
    pub system_id: SystemId,
    /// The version, as the server counts: 150018.
    pub version: u32,
    /// When the server was started: `2026-11-23 13:08:48.479232+00:00`.
    pub started: String,
    /// The same in seconds since the epoch.
    pub started_epoch: f64,
    /// Whether it is in recovery: a standby, or not yet up.
    pub in_recovery: bool,
    /// The timeline it writes, or the newest it has received or recovered.
    pub timeline: Option<Timeline>,
    /// The timeline of the latest checkpoint in the control file. After a promotion it lags until that is written,
    /// and only then can others rewind to this server.
    pub checkpoint_timeline: Timeline,
    /// Where the next record will be written; none in recovery.
    pub write: Option<Lsn>,
    /// Up to where the WAL is safely on disk; none in recovery.
    pub flush: Option<Lsn>,
    /// Up to where it was received and is on disk; none where it never was.
    pub received: Option<Lsn>,
    /// Up to where it was replayed; none out of recovery.
    pub replayed: Option<Lsn>,
    /// When the last replayed transaction was committed, by its primary's clock.
    pub replayed_at: Option<String>,
    /// Whether replay is paused.
    pub replay_paused: bool,
    /// What it receives from its upstream; none where it does not.
    pub receiver: Option<Receiver>,
    /// Who receives from it.
    pub senders: Vec<Sender>,
    /// Its slots, of all kinds.
    pub slots: Vec<SlotState>,
    /// The setting, as it is in effect for this session.
    pub synchronous_standby_names: String,
    /// The setting.
    pub synchronous_commit: String,
    /// The setting.
    pub restore_command: String,
}

impl ServerState {
    /// Whether others can rewind to this server: it is a primary, and its control file knows its timeline.
    #[must_use]
    pub fn checkpoint_after_promote(&self) -> bool {
        !self.in_recovery && self.timeline == Some(self.checkpoint_timeline)
    }

    /// How far it has the WAL: written, received or replayed, whichever is the most.
    #[must_use]
    pub fn position(&self) -> Lsn {
        let written = self.receiver.as_ref().and_then(|r| r.written);
        [self.write, self.received, self.replayed, written]
            .into_iter()
            .flatten()
            .max()
            .unwrap_or_default()
    }

    /// `streaming`, where it does; `in archive recovery`, where it recovers and does not; none for a primary.
    #[must_use]
    pub fn replication_state(&self) -> Option<&str> {
        match &self.receiver {
            Some(receiver) if receiver.status == "streaming" => Some("streaming"),
            _ if self.in_recovery && !self.restore_command.is_empty() => {
                Some("in archive recovery")
            }
            _ => None,
        }
    }
}

/// The walreceiver.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Receiver {
    /// Its process id.
    pub pid: i32,
    /// `streaming`, once it does.
    pub status: String,
    /// Up to where it has written, from version 13 on.
    pub written: Option<Lsn>,
    /// Up to where it has flushed.
    pub flushed: Option<Lsn>,
    /// The timeline it receives.
    pub timeline: Option<Timeline>,
    /// The newest position of the upstream it was told.
    pub latest_end: Option<Lsn>,
    /// Its slot, if any.
    pub slot: Option<String>,
    /// Its upstream's host.
    pub host: Option<String>,
    /// Its upstream's port.
    pub port: Option<i32>,
    /// How it connects, without secrets.
    pub conninfo: Option<String>,
}

/// A walsender: one who receives from this server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sender {
    /// Its process id.
    pub pid: i32,
    /// The account.
    pub usename: Option<String>,
    /// What the receiver calls itself: a member's name.
    pub application_name: String,
    /// Its address.
    pub client_addr: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: Option<String>,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: Option<String>,
    /// Its place among the synchronous ones; zero for none.
    pub sync_priority: Option<i32>,
    /// Up to where it was sent.
    pub sent: Option<Lsn>,
    /// Up to where the other side has written.
    pub written: Option<Lsn>,
    /// Up to where the other side has flushed.
    pub flushed: Option<Lsn>,
    /// Up to where the other side has replayed.
    pub replayed: Option<Lsn>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SlotState {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    /// A logical one's output plugin.
    pub plugin: Option<String>,
    /// A logical one's database.
    pub database: Option<String>,
    /// Whether it ends with its session.
    pub temporary: bool,
    /// Whether somebody uses it.
    pub active: bool,
    /// From where on WAL is kept for it; none where none was reserved yet.
    pub restart: Option<Lsn>,
    /// Up to where a logical one's reader has confirmed.
    pub confirmed_flush: Option<Lsn>,
    /// The oldest transaction it holds back, if it does.
    pub xmin: Option<String>,
    /// The same for the catalog.
    pub catalog_xmin: Option<String>,
    /// `reserved`, `extended`, `unreserved` or `lost`, from version 13 on.
    pub wal_status: Option<String>,
    /// Whether it is one that the server itself carries over to standbys (version 17 and on).
    pub failover: bool,
}

impl SlotState {
    /// Whether it is a physical one that stays.
    #[must_use]
    pub fn is_physical(&self) -> bool {
        self.kind == "physical" && !self.temporary
    }
}

/// The question. Everything comes as one JSON document: the server composes it in well under a millisecond,
/// and no other round trip is needed.
fn query(version: Version) -> String {
    let (written, flushed, wal_status) = if version.major >= 13 {
        ("written_lsn", "flushed_lsn", "wal_status")
    } else {
        ("NULL::pg_lsn", "received_lsn", "NULL::text")
    };
    let failover = if version.major >= 17 { "failover" } else { "false" };
    let number = |lsn: &str| format!("pg_wal_lsn_diff({lsn}, '0/0')::bigint");
    let moment = |time: &str| format!("to_char({time}, 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM')");
    format!(
        "SELECT json_build_object(\
         'system_id', (SELECT system_identifier::text FROM pg_control_system()), \
         'version', current_setting('server_version_num')::int, \
         'started', {started}, \
         'started_epoch', extract(epoch FROM pg_postmaster_start_time()), \
         'in_recovery', r, \
         'timeline', CASE WHEN r THEN nullif(greatest(\
            (SELECT received_tli FROM pg_stat_wal_receiver), \
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()), \
            (SELECT timeline_id FROM pg_control_checkpoint())), 0) \
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END, \
         'checkpoint_timeline', (SELECT timeline_id FROM pg_control_checkpoint()), \
         'write', CASE WHEN NOT r THEN {write} END, \
         'flush', CASE WHEN NOT r THEN {flush} END, \
         'received', CASE WHEN r THEN {received} END, \
         'replayed', CASE WHEN r THEN {replayed} END, \
         'replayed_at', CASE WHEN r THEN {replayed_at} END, \
         'replay_paused', CASE WHEN r THEN pg_is_wal_replay_paused() ELSE false END, \
         'receiver', (SELECT json_build_object('pid', pid, 'status', status, 'written', {w_written}, \
            'flushed', {w_flushed}, 'timeline', received_tli, 'latest_end', {w_end}, 'slot', slot_name, \
            'host', sender_host, 'port', sender_port, 'conninfo', conninfo) FROM pg_stat_wal_receiver), \
         'senders', coalesce((SELECT json_agg(json_build_object('pid', pid, 'usename', usename, \
            'application_name', application_name, 'client_addr', host(client_addr), 'state', state, \
            'sync_state', sync_state, 'sync_priority', sync_priority, 'sent', {s_sent}, \
            'written', {s_write}, 'flushed', {s_flush}, 'replayed', {s_replay}) ORDER BY pid) \
            FROM pg_stat_replication), '[]'), \
         'slots', coalesce((SELECT json_agg(json_build_object('name', slot_name, 'kind', slot_type, \
            'plugin', plugin, 'database', database, 'temporary', temporary, 'active', active, \
            'restart', {restart}, 'confirmed_flush', {confirmed}, 'xmin', xmin::text, \
            'catalog_xmin', catalog_xmin::text, 'wal_status', {wal_status}, 'failover', {failover}) \
            ORDER BY slot_name) FROM pg_replication_slots), '[]'), \
         'synchronous_standby_names', current_setting('synchronous_standby_names'), \
         'synchronous_commit', current_setting('synchronous_commit'), \
         'restore_command', current_setting('restore_command'))::text \
         FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) AS recovery",
        started = moment("pg_postmaster_start_time()"),
        write = number("pg_current_wal_lsn()"),
        flush = number("pg_current_wal_flush_lsn()"),
        received = number("pg_last_wal_receive_lsn()"),
        replayed = number("pg_last_wal_replay_lsn()"),
        replayed_at = moment("pg_last_xact_replay_timestamp()"),
        w_written = number(written),
        w_flushed = number(flushed),
        w_end = number("latest_end_lsn"),
        s_sent = number("sent_lsn"),
        s_write = number("write_lsn"),
        s_flush = number("flush_lsn"),
        s_replay = number("replay_lsn"),
        restart = number("restart_lsn"),
        confirmed = number("confirmed_flush_lsn"),
    )
}

impl Session {
    /// Asks the server for its state: one round trip.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn state(&self) -> Result<ServerState, SessionError> {
        const WHAT: &str = "ask for the state";
        let version = self.version();
        let row = self.ask(WHAT, self.patience(), async |link| {
            let prepare = async || link.client.prepare(&query(version)).await;
            let statement = link.state_query.get_or_try_init(prepare).await?;
            link.client.query_one(statement, &[]).await
        });
        let text: String = row.await?.get(0);
        serde_json::from_str(&text)
            .map_err(|error| SessionError::Strange { what: WHAT, why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDBY: &str = r#"{"system_id":"7711353190614709005","version":150018,
        "started":"2026-11-23 13:08:48.479232+00:00","started_epoch":1795439328.479232,"in_recovery":true,
        "timeline":2,"checkpoint_timeline":1,"write":null,"flush":null,"received":67108960,
        "replayed":67108900,"replayed_at":null,"replay_paused":false,
        "receiver":{"pid":7,"status":"streaming","written":67108970,"flushed":67108960,"timeline":2,
        "latest_end":67108970,"slot":"pg1","host":"127.0.0.1","port":5432,"conninfo":"user=rep"},
        "senders":[],"slots":[{"name":"pg2","kind":"physical","plugin":null,"database":null,
        "temporary":false,"active":false,"restart":null,"confirmed_flush":null,"xmin":null,
        "catalog_xmin":null,"wal_status":null,"failover":false}],
        "synchronous_standby_names":"","synchronous_commit":"on","restore_command":""}"#;

    #[test]
    fn a_standbys_answer() {
        let mut state: ServerState = serde_json::from_str(STANDBY).unwrap();
        assert_eq!(state.position(), Lsn(67_108_970), "what was written counts, flushed or not");
        assert_eq!(state.replication_state(), Some("streaming"));
        assert!(state.slots[0].is_physical() && !state.checkpoint_after_promote());
        state.receiver = None;
        assert_eq!((state.position(), state.replication_state()), (Lsn(67_108_960), None));
        state.restore_command = "cp".into();
        assert_eq!(state.replication_state(), Some("in archive recovery"));
    }

    #[test]
    fn the_question_fits_each_version() {
        let of = |major| query(Version { major, minor: 0 });
        assert!(of(12).contains("received_lsn") && !of(12).contains("wal_status,"));
        assert!(of(13).contains("written_lsn") && of(13).contains("'wal_status', wal_status"));
        assert!(of(17).contains("'failover', failover") && of(16).contains("'failover', false"));
    }
}
