//! The names of the rows: every decision comes from one of them.
//!
//! `docs/agent/decisions-table.md` is this table with the tests of each row; a test compares it.

macro_rules! rows {
    ($($situation:literal: { $($name:ident: $when:literal => $does:literal;)* })*) => {
        /// A row of the decision table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Row {
            $($(#[doc = concat!($when, ": ", $does, ".")] $name,)*)*
        }

        impl Row {
            /// Every row, in the order of the table.
            pub const ALL: &'static [Row] = &[$($(Row::$name,)*)*];

            /// Its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($(Row::$name => stringify!($name),)*)* }
            }

            /// The part of the table that it stands in.
            #[must_use]
            pub fn situation(self) -> &'static str {
                match self { $($(Row::$name => $situation,)*)* }
            }

            /// When it applies, in words.
            #[must_use]
            pub fn when(self) -> &'static str {
                match self { $($(Row::$name => $when,)*)* }
            }

            /// What is done then, in words.
            #[must_use]
            pub fn does(self) -> &'static str {
                match self { $($(Row::$name => $does,)*)* }
            }
        }
    };
}

rows! {
    "Whoever could write and must not": {
        FenceDue: "The lease, or what failsafe mode adds to it, is about to end" => "stop: fast, then immediate, then SIGKILL, each in its time";
        AnotherLeads: "The leader key names another" => "stop immediately, then kill";
        AnotherHasLed: "The key is gone, and another has held it since" => "stop immediately";
        PromotingWithoutKey: "The key is gone while the server is being promoted" => "stop immediately";
        StoppingWithoutKey: "The key is gone while a primary is being shut down" => "stop immediately, then kill";
        StartingWithoutKey: "The key is gone while a primary is being started" => "stop immediately";
    }
    "Handing over": {
        HandoverStops: "A handing over was begun and the server runs" => "stop it";
        HandoverDrains: "The server is shutting down" => "wait, and renew the lease";
        HandoverStuck: "It does not shut down within `primary_stop_timeout`, else twice the `ttl`" => "stop immediately, then kill";
        HandoverWaits: "The control file says shut down; the candidate has not received everything" => "ask it, for three seconds";
        HandoverReleases: "The candidate has received everything; or the agent stops and nobody is fit; or the server was given up" => "release the key";
        HandoverCalledOff: "A switchover's candidate does not get there" => "start as a primary again";
    }
    "The agent is asked to stop": {
        ExitPaused: "Paused" => "end, and leave the server as it is";
        ExitHandsOver: "The leader" => "shut the server down, handing over to the fittest";
        ExitStopsServer: "A server runs" => "shut it down";
        ExitReleases: "No server runs, and the key is ours" => "release the key";
        Exit: "No server runs" => "end";
    }
    "Paused": {
        PausedLeads: "The key is ours and the server a primary" => "renew, and do the leader's writing";
        PausedReleases: "The key is ours, but the server is no primary, or its data are another cluster's" => "release the key";
        PausedTakesKey: "Nobody leads and the server is a primary" => "put the leader key, if it is absent";
        PausedIdle: "Otherwise" => "nothing";
    }
    "Work under way": {
        UnderWay: "A piece of work on the server or its data has not ended" => "wait";
        StartsUp: "The server is starting" => "wait; the leader's lease is renewed";
        StartTooSlow: "The leader's server takes longer than `primary_start_timeout`, and another is fit" => "stop immediately and hand over";
        StoppingDown: "The server is shutting down" => "wait";
        StopStuck: "It does not stop" => "stop it harder";
    }
    "etcd is silent": {
        EtcdUnknown: "It has never answered, and no server runs" => "wait";
        SilentStandby: "A standby runs" => "keep it";
        SilentStarts: "No server runs" => "start as a standby";
        SilentLeader: "A primary runs and its lease is good" => "go on, until the fence";
        FailsafeAsks: "The same, in failsafe mode" => "ask every member, each tenth of the `ttl`";
        FailsafeLeads: "Every member has accepted" => "go on, for a `ttl` from when they were asked";
    }
    "No data, or another cluster's": {
        ForeignSystem: "The system identifier is not the cluster's" => "end with an error";
        EmptyReleases: "No data, and the key is ours" => "release the key";
        BootstrapRaces: "No data, and no cluster" => "put `initialize`, if it is absent";
        BootstrapAwaited: "No data, and another makes the cluster" => "wait";
        BootstrapAbandoned: "The same, for two `ttl`s, and no member says that it does" => "take `initialize`";
        BootstrapStarts: "The cluster is made, its server is down" => "start it";
        BootstrapEnds: "Its server runs" => "write the identifier and the configuration, and lead";
        BootstrapFails: "It could not be made" => "put the data aside, delete `initialize`";
        Clones: "No data, and a leader, or another source" => "copy them";
        LeaderAwaited: "No data, no leader, no other source" => "wait";
    }
    "The server is down": {
        KeyReattached: "The key is ours, but hangs on another lease" => "put it with this session's, if it is ours still";
        DeadPrimaryRestarts: "The key is ours, and the data are the newest primary's" => "start as a primary, at once";
        DeadPrimaryReleases: "The same, `primary_start_timeout` is zero, and another is fit" => "release the key to it, at once";
        StartFailedReleases: "The key is ours, the server did not start, and another is fit" => "release the key to it";
        CrashLoopReleases: "The key is ours, the third crash within `primary_start_timeout`, and another is fit" => "release the key to it";
        StartFailedWaits: "The last start failed a moment ago" => "wait two seconds";
        LeaseTooShort: "The key is ours, but little is left of the lease" => "wait for its renewal";
        KeyHolderStarts: "The key is ours, and the data are a standby's, or older than the history" => "start as a standby";
        StandbyLeaderStarts: "The key is ours, in a standby cluster" => "start as a standby of the other cluster";
        WaitsForHeir: "Nobody leads, and this member has just given up the key" => "wait a second for the next leader";
        StartsWithoutLeader: "Nobody leads" => "start as a standby";
        StartsAsStandby: "Another leads, and the data can follow it" => "start as its standby";
    }
    "The data may have diverged": {
        RewindChecked: "They were a primary's, or do not stream; another leads" => "compare them with its history";
        LeaderNotReady: "The other holds the key and does not lead yet" => "wait";
        LeaderNotCheckpointed: "The other has yet to make its first checkpoint as the leader" => "wait";
        StopsToRewind: "They must be rewound, and the standby runs" => "stop it";
        RecoversAlone: "They must be rewound, and the server had crashed" => "recover it in single-user mode";
        Rewinds: "They must be rewound" => "rewind them";
        ClonesAgain: "That failed, or is off, and the configuration allows it" => "copy them anew";
        Diverged: "That failed, or is off, and the configuration does not allow it" => "wait for an operator";
    }
    "Another leads": {
        Following: "The standby streams" => "nothing";
        Follows: "It replicates from elsewhere" => "point it at the leader";
        StreamLost: "It does not stream" => "ask the members, so that who is ahead is known when the key goes";
    }
    "Nobody leads: a primary": {
        KeyGone: "The key seems to be gone" => "read it linearizably";
        KeyPutAgain: "It is, and the lease was good" => "put it again, if it is absent";
        OldTimeline: "The history, a member or a claim is of a newer timeline" => "a primary stops immediately; a standby that must be on the history's stands back";
        NotInSync: "In synchronous mode, and `sync` does not name this member" => "a primary stops immediately, a standby stands back";
    }
    "Nobody leads: the race": {
        NeverLeads: "The tags forbid it" => "stand back";
        WatchdogMissing: "The watchdog is required and does not work" => "stand back";
        NotInFailsafe: "Failsafe mode is on, and `failsafe` does not name this member" => "stand back";
        PromotionFailed: "The last promotion failed, less than a `ttl` ago" => "stand back";
        FailsafeHolds: "This member accepted a primary in failsafe mode less than a `ttl` ago, or has just begun and cannot know" => "stand back";
        StandsBack: "Another was asked to take over" => "stand back, a while";
        PrimaryLives: "A member says that it leads" => "stand back, and ask again";
        LastLeaderAsked: "The leader key went, but not the last leader's lease" => "ask it; stand back until it answers or its lease ends";
        LagsTooFar: "Behind the last leader by more than `maximum_lag_on_failover`" => "stand back";
        PeersAsked: "Not every member has said where it is" => "ask them, and wait 300 ms at most";
        PeerGoesFirst: "A member is ahead, or of higher priority" => "stand back, a while";
        VotesLack: "In quorum mode, too few say that they are not ahead" => "ask again, without end";
        NoSession: "There is no lease that was just renewed" => "wait for it";
        Acquires: "None of these" => "put the leader key, if it is absent and `sync` unchanged";
    }
    "The key is ours, the server a standby": {
        KeyGivenBack: "It must not lead after all, or its promotion failed" => "release the key";
        SyncBeforePromotion: "In synchronous mode" => "write this leader alone into `sync`, and reset what commits wait for";
        ClaimsTimeline: "The next timeline is not claimed" => "write it to the key `timeline`";
        Promotes: "It is" => "promote";
        StandbyLeaderFollows: "In a standby cluster, and it replicates from elsewhere" => "point it at the other cluster";
        StandbyLeads: "In a standby cluster" => "renew, and write `status`";
    }
    "The key is ours, the server a primary": {
        BecomesStandbyCluster: "The cluster has become a standby of another" => "shut down, and keep the key";
        RequestRefused: "What was asked for cannot be done" => "clear the request, with the reason";
        NameCandidate: "A switchover to anyone was asked for" => "write the fittest into the request";
        CandidateAsked: "A switchover was asked for; the candidate has not just answered" => "ask it, for three seconds";
        SwitchoverBegins: "The candidate is fit" => "shut down, in order to hand over";
        Leads: "Otherwise" => "renew, and do the leader's writing";
    }
}
