//! One server, with everything that is done to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::binaries::Version;
use super::bootstrap::{self, BootstrapSettings};
use super::callbacks::{CallbackAction, Callbacks};
use super::clone::{self, CloneError, Cloned, ReplicaMethod};
use super::control::{ControlData, ControlError, DataState};
use super::files::{Raised, Recovery, forced_parameters, warn_of_moved_sockets};
use super::outcome::{Applied, ApplyError, CreateError, SetSyncNamesError, Started};
use super::process::{
    AdoptError, DirWatch, Fence, Launch, PostmasterStatus, Server, StartError, StopError, StopPlan,
    Stopped,
};
use super::rejoin::{self, RejoinError, Rejoined};
use super::replication::{
    FollowError, PromoteError, Promoted, Streaming, SyncNames, promote, wait_in_effect,
    wait_streaming,
};
use super::session::{Sender, Session, SessionError};
use super::settings::{ServerSettings, Upstream};
use super::site::{Site, SiteError};

/// A PostgreSQL server beside the agent.
///
/// Whatever changes it takes its turn: a start waits for a stop that is in progress. To stop a server that is starting, drop
/// the start and then stop; the server itself is known from the moment it exists. Questions take no turn.
#[derive(Debug)]
pub struct Postgres {
    site: Mutex<Site>,
    session: Session,
    fence: Fence,
    callbacks: Callbacks,
    current: Mutex<Current>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Current {
    server: Option<Arc<Server>>,
    recovery: Recovery,
    /// What stands in for the configured `synchronous_standby_names`, once it was set.
    sync_names: Option<String>,
    raised: Vec<Raised>,
}

impl Postgres {
    /// Looks for the account and PostgreSQL's programs. Starts nothing.
    ///
    /// # Errors
    /// When there are none.
    pub async fn open(settings: ServerSettings) -> Result<Self, SiteError> {
        warn_of_moved_sockets(&settings);
        let site = Site::find(Arc::new(settings)).await?;
        Ok(Self {
            session: Session::new(&site.settings, site.version()),
            fence: Fence::new(),
            callbacks: Callbacks::new(&site.identity),
            current: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            site: Mutex::new(site),
        })
    }

    /// Its place, with the settings of now.
    #[must_use]
    pub fn site(&self) -> Site {
        self.site.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of PostgreSQL's programs.
    #[must_use]
    pub fn version(&self) -> Version {
        self.session.version()
    }

    /// The agent's connection to it.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The fence around it.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// The server, as long as it runs.
    #[must_use]
    pub fn server(&self) -> Option<Arc<Server>> {
        self.current().server.clone().filter(|server| server.is_running())
    }

    /// The kind of recovery that its files ask for, as far as this agent has written or found them.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.current().recovery.clone()
    }

    /// Whether there are data.
    #[must_use]
    pub fn has_data(&self) -> bool {
        super::control::has_data(self.site().data_dir())
    }

    /// Finds the server that an earlier agent left running, and takes it on.
    ///
    /// # Errors
    /// When one seems to run and cannot be taken on.
    pub fn adopt(&self) -> Result<Option<Arc<Server>>, AdoptError> {
        if let Some(server) = self.server() {
            return Ok(Some(server));
        }
        let site = self.site();
        let Some(server) = Server::adopt(site.data_dir(), &self.fence)? else { return Ok(None) };
        let server = Arc::new(server);
        tracing::info!(pid = server.pid(), "found PostgreSQL running");
        let mut current = self.current();
        current.server = Some(Arc::clone(&server));
        // Until it is told whom to follow it goes on following whom it follows.
        if current.recovery == Recovery::None {
            current.recovery = site.files().recovery_as_found();
        }
        drop(current);
        Ok(Some(server))
    }

    /// Starts it: writes its files and runs it. It is on its way up when this returns; see [`Server::wait_ready`]. Cancel-safe.
    ///
    /// # Errors
    /// When it runs already, or cannot be started. `deadline` is for clearing away what an earlier one left.
    pub async fn start(
        &self,
        recovery: Recovery,
        deadline: Instant,
    ) -> Result<Arc<Server>, StartError> {
        let _turn = self.turn.lock().await;
        self.start_in_turn(recovery, deadline).await
    }

    async fn start_in_turn(
        &self,
        recovery: Recovery,
        deadline: Instant,
    ) -> Result<Arc<Server>, StartError> {
        let site = self.effective_site();
        if let Err(error) = site.binaries.check_data(site.data_dir()) {
            let source = std::io::Error::other(error.to_string());
            return Err(StartError::Spawn { program: site.binaries.program("postgres"), source });
        }
        if rejoin::was_interrupted(&site) {
            return Err(StartError::HalfRewound { data_dir: site.data_dir().to_owned() });
        }
        let is_primary = recovery == Recovery::None;
        let control = if is_primary { None } else { site.control().await.ok() };
        let (forced, raised) = forced_parameters(&site.settings, control.as_ref());
        site.files().write(&recovery)?;
        self.session.disconnect().await;
        let config_file = site.files().conf();
        let launch = Launch {
            binaries: &site.binaries,
            identity: &site.identity,
            data_dir: site.data_dir(),
            config_file: &config_file,
            forced: &forced,
            log: &site.settings.log,
        };
        let server = Arc::new(launch.start(&self.fence, deadline).await?);
        for parameter in &raised {
            tracing::warn!(
                ?parameter,
                "started with more than is configured: its primary has more"
            );
        }
        let mut current = self.current();
        *current = Current {
            server: Some(Arc::clone(&server)),
            recovery,
            raised,
            sync_names: current.sync_names.take(),
        };
        drop(current);
        Ok(server)
    }

    /// Starts it and waits until it takes connections. Cancel-safe: it goes on starting.
    ///
    /// # Errors
    /// When it cannot be started, ends again, or takes no connections by the deadline.
    pub async fn start_and_wait(
        &self,
        recovery: Recovery,
        deadline: Instant,
    ) -> Result<Started, StartError> {
        let begin = Instant::now();
        let server = self.start(recovery, deadline).await?;
        let status = server.wait_ready(deadline).await?;
        let (took, raised) = (begin.elapsed(), self.current().raised.clone());
        tracing::info!(pid = server.pid(), ?status, ?took, "PostgreSQL takes connections");
        Ok(Started { server, status, took, raised })
    }

    /// Stops it by a plan; none where none runs. Cancel-safe: it goes on stopping.
    ///
    /// # Errors
    /// When it may not be signalled, or is still there at the end of the plan.
    pub async fn stop(&self, plan: &StopPlan) -> Result<Option<Stopped>, StopError> {
        let _turn = self.turn.lock().await;
        self.stop_in_turn(plan).await
    }

    async fn stop_in_turn(&self, plan: &StopPlan) -> Result<Option<Stopped>, StopError> {
        let server = self.server();
        let Some(server) = server else { return Ok(None) };
        let stopped = server.stop(plan).await?;
        self.session.disconnect().await;
        Ok(Some(stopped))
    }

    /// Restarts it as what it is.
    ///
    /// # Errors
    /// When it cannot be stopped or started.
    pub async fn restart(&self, plan: &StopPlan, deadline: Instant) -> Result<Started, ApplyError> {
        let begin = Instant::now();
        let server = {
            let _turn = self.turn.lock().await;
            self.stop_in_turn(plan).await?;
            self.start_in_turn(self.recovery_as_found(), deadline).await?
        };
        let status = server.wait_ready(deadline).await?;
        let raised = self.current().raised.clone();
        Ok(Started { server, status, took: begin.elapsed(), raised })
    }

    /// A standby that was promoted is a primary by its files, whatever it was started as.
    fn recovery_as_found(&self) -> Recovery {
        let recovery = self.recovery();
        match recovery {
            Recovery::Standby(_) | Recovery::StandbyAsFound(_)
                if !self.site().files().is_standby() =>
            {
                Recovery::None
            }
            Recovery::Target(_) | Recovery::AsFound => Recovery::None,
            other => other,
        }
    }

    /// Waits until the control file says that it has written its last checkpoint, while it stops: from then on nothing new can
    /// come, and the leader lock may go to another, though senders and the archiver may still be busy. Returns also when it has
    /// ended without that: look at the state. Bounded by the stop itself. Cancel-safe.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub async fn wait_shut_down_state(&self) -> Result<ControlData, ControlError> {
        let site = self.site();
        let mut watch = DirWatch::on(&[&site.data_dir().join("global"), site.data_dir()]);
        loop {
            let control = site.control().await?;
            let gone = self.server().is_none();
            if control.state.is_clean() || gone {
                return Ok(control);
            }
            watch.changed().await;
        }
    }

    /// Reads the control file.
    ///
    /// # Errors
    /// When there is none, or it makes no sense.
    pub async fn control(&self) -> Result<ControlData, ControlError> {
        self.site().control().await
    }

    /// Whether it crashed: it does not run, and the control file says that it was not shut down in order.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub async fn has_crashed(&self) -> Result<bool, ControlError> {
        let control = self.control().await?;
        let running =
            matches!(control.state, DataState::InProduction | DataState::InArchiveRecovery);
        Ok(self.server().is_none() && running)
    }

    /// The settings, with what was set at run time in their place.
    fn effective_site(&self) -> Site {
        let site = self.site();
        let Some(value) = self.current().sync_names.clone() else { return site };
        let mut settings = ServerSettings::clone(&site.settings);
        settings.parameters.insert("synchronous_standby_names".to_owned(), value);
        site.with_settings(Arc::new(settings))
    }

    /// Goes by new settings: writes the files, and has a running server read them if any changed. Nothing is restarted.
    ///
    /// # Errors
    /// When a file cannot be written, or the server does not answer.
    pub async fn apply(&self, settings: ServerSettings) -> Result<Applied, ApplyError> {
        let _turn = self.turn.lock().await;
        warn_of_moved_sockets(&settings);
        let settings = Arc::new(settings);
        let site = self.site().with_settings(Arc::clone(&settings));
        *self.site.lock().unwrap_or_else(PoisonError::into_inner) = site;
        self.session.update(&settings).await;
        self.write_and_reload().await
    }

    async fn write_and_reload(&self) -> Result<Applied, ApplyError> {
        let site = self.effective_site();
        if !self.has_data() {
            return Ok(Applied::default());
        }
        let written = site.files().write(&self.recovery_as_found())?;
        let mut applied = Applied { written, ..Applied::default() };
        let Some(server) = self.server() else { return Ok(applied) };
        if written.any() {
            let before = match self.session.load_time().await {
                Ok(before) => before,
                // It is still coming up: then it reads the new files, but there is nobody to ask what it made of them.
                Err(error @ SessionError::Connect { .. }) => {
                    tracing::debug!(%error, "reloading a server that takes no connections yet");
                    server.reload().map_err(ApplyError::Signal)?;
                    applied.reloaded = true;
                    return Ok(applied);
                }
                Err(error) => return Err(error.into()),
            };
            server.reload().map_err(ApplyError::Signal)?;
            let deadline = Instant::now() + site.settings.pg_ctl_timeout;
            applied.rejected = self.session.wait_reloaded(&before, deadline).await?;
            applied.reloaded = applied.rejected.is_empty();
        }
        let (forced, _) = forced_parameters(&site.settings, None);
        applied.pending_restart = self.session.pending_restart(&forced).await?;
        Ok(applied)
    }

    /// Has a standby follow another upstream. Where the server takes that from a reload (from version 13 on) it is not
    /// restarted. See [`wait_streaming`](Self::wait_streaming) for when it does.
    ///
    /// # Errors
    /// When a file cannot be written, or the server cannot be told.
    pub async fn follow(&self, upstream: Option<Upstream>) -> Result<Applied, ApplyError> {
        let _turn = self.turn.lock().await;
        self.current().recovery = Recovery::Standby(upstream.clone());
        let site = self.effective_site();
        if !self.has_data() {
            return Ok(Applied::default());
        }
        let written = site.files().write(&Recovery::Standby(upstream.clone()))?;
        let mut applied = Applied { written, ..Applied::default() };
        let Some(server) = self.server().filter(|_| written.any()) else { return Ok(applied) };
        if self.version().major >= 13 {
            // That it was read shows in whom it streams from; there is nothing to wait for here.
            server.reload().map_err(ApplyError::Signal)?;
        } else {
            let patience = site.settings.pg_ctl_timeout;
            let plan = StopPlan::new(super::process::StopMode::Fast, patience)
                .then(super::process::StopMode::Immediate, patience);
            self.stop_in_turn(&plan).await?;
            self.start_in_turn(Recovery::Standby(upstream), Instant::now() + patience).await?;
        }
        applied.reloaded = true;
        Ok(applied)
    }

    /// Waits until a standby streams from its upstream. Cancel-safe.
    ///
    /// # Errors
    /// When it does not by the deadline, or ends.
    pub async fn wait_streaming(
        &self,
        upstream: &Upstream,
        deadline: Instant,
    ) -> Result<Streaming, FollowError> {
        let gone = || FollowError::Exited { said: String::new() };
        let server = self.server().ok_or_else(gone)?;
        wait_streaming(&server, &self.session, upstream, deadline).await
    }

    /// Promotes a standby and waits until it is out of recovery. When the future is dropped before, the request is taken
    /// back; a promotion that has already begun goes on.
    ///
    /// # Errors
    /// When it is no standby, ends, or is not promoted by the deadline.
    pub async fn promote(&self, deadline: Instant) -> Result<Promoted, PromoteError> {
        let _turn = self.turn.lock().await;
        let server = self.server().ok_or(PromoteError::NotRunning)?;
        let promoted = promote(&server, &self.session, &self.site().identity, deadline).await?;
        self.current().recovery = Recovery::None;
        Ok(promoted)
    }

    /// After a promotion, writes the checkpoint without which nobody can rewind to this server. It may take minutes: run it
    /// beside everything else. Does nothing where it was written already.
    ///
    /// # Errors
    /// When it fails, or has not ended after `within`.
    pub async fn checkpoint_after_promote(&self, within: Duration) -> Result<(), SessionError> {
        if self.session.state().await?.checkpoint_after_promote() {
            return Ok(());
        }
        self.session.checkpoint(within).await
    }

    /// Sets `synchronous_standby_names` and waits until that is in effect: then no commit is acknowledged any more that is not
    /// what the new value asks for. Returns who receives, as the server sees them then. `None` goes back to the configured value
    /// without waiting.
    ///
    /// # Errors
    /// When it cannot be set, or is not known to be in effect by the deadline; it may then still come into effect.
    pub async fn set_synchronous_standby_names(
        &self,
        names: Option<&SyncNames>,
        deadline: Instant,
    ) -> Result<Vec<Sender>, SetSyncNamesError> {
        let _turn = self.turn.lock().await;
        self.current().sync_names = names.map(|names| names.value.clone());
        self.write_and_reload().await?;
        match names {
            Some(names) if self.server().is_some() => {
                Ok(wait_in_effect(&self.session, names, deadline).await?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Makes a new cluster's data, starts it as a primary, and sets it up. Cancel-safe up to the start.
    ///
    /// # Errors
    /// When there are data already, or any of it fails.
    pub async fn bootstrap(
        &self,
        settings: &BootstrapSettings,
        deadline: Instant,
    ) -> Result<Started, CreateError> {
        let site = self.site();
        let recovery = {
            let _turn = self.turn.lock().await;
            bootstrap::create_data(&site, settings, deadline).await?;
            match &settings.custom {
                Some(custom) if !custom.recovery_conf.is_empty() => {
                    Recovery::Target(custom.recovery_conf.clone())
                }
                Some(custom) if custom.keep_existing_recovery_conf => Recovery::AsFound,
                _ => Recovery::None,
            }
        };
        let recovers = recovery != Recovery::None;
        let mut started = self.start_and_wait(recovery, deadline).await?;
        if recovers {
            self.wait_recovered(&started.server, deadline).await?;
            started.status = PostmasterStatus::Ready;
            self.current().recovery = Recovery::None;
        }
        site.files().save_copies().map_err(StartError::from)?;
        bootstrap::set_up(&site, &self.session, settings, deadline).await?;
        if recovers {
            self.write_and_reload().await?;
        }
        Ok(started)
    }

    /// A restored backup becomes a primary by itself when it has recovered to its target.
    async fn wait_recovered(&self, server: &Server, deadline: Instant) -> Result<(), StartError> {
        loop {
            if self.session.is_in_recovery().await.is_ok_and(|recovers| !recovers) {
                return Ok(());
            }
            let not_ready = StartError::NotReady {
                pid: server.pid(),
                status: server.status(),
                said: server.last_words(),
            };
            tokio::select! {
                exit = server.exited() => {
                    return Err(StartError::Exited { exit, said: server.last_words() });
                }
                () = sleep(Duration::from_millis(50)) => {}
            }
            if Instant::now() >= deadline {
                return Err(not_ready);
            }
        }
    }

    /// Makes a standby's data as a copy. It is then started as one.
    ///
    /// # Errors
    /// When there are data already, or no method works.
    pub async fn clone_from(
        &self,
        from: Option<&Upstream>,
        methods: &[ReplicaMethod],
        deadline: Instant,
    ) -> Result<Cloned, CloneError> {
        let _turn = self.turn.lock().await;
        clone::clone(&self.site(), from, methods, deadline).await
    }

    /// Makes a stopped server's data fit to follow a leader; see [`rejoin::rejoin`].
    ///
    /// # Errors
    /// See [`RejoinError`]. Nothing is thrown away.
    pub async fn rejoin(
        &self,
        leader: &Upstream,
        may_rewind: bool,
        deadline: Instant,
    ) -> Result<Rejoined, RejoinError> {
        let _turn = self.turn.lock().await;
        rejoin::rejoin(&self.site(), &self.fence, leader, may_rewind, deadline).await
    }

    /// Runs the callback for an action, if there is one. Returns at once.
    pub fn call_back(&self, action: CallbackAction, role: &str) {
        let settings = self.site().settings;
        self.callbacks.run(&settings.callbacks, action, role, &settings.scope);
    }

    /// Lets callbacks that run end, for at most `patience`. The server itself is left alone.
    pub async fn close(&self, patience: Duration) {
        self.callbacks.shutdown(patience).await;
        self.session.disconnect().await;
    }

    /// The parameters that are started with more than is configured.
    #[must_use]
    pub fn raised(&self) -> BTreeMap<String, u64> {
        self.current().raised.iter().map(|r| (r.name.clone(), r.started_with)).collect()
    }
}
