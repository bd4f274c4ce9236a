//! What is wrong with a configuration, all of it at once, each with its place.

use std::fmt;
use std::sync::Arc;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Read, and read differently from what the letter of the file may suggest.
    Notice,
    /// Could not be taken as written; `done` says what was done instead.
    Warning,
    /// The configuration cannot be used like this.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Notice => "notice",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// In a file.
    File {
        /// The name as it was given to [`Config::load_files`](super::Config::load_files).
        file: Arc<str>,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// In an environment variable, by its name.
    Environment(Arc<str>),
    /// In the dynamic configuration that the whole cluster shares.
    Dynamic,
    /// Nowhere: a default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Origin::Environment(name) => write!(f, "${name}"),
            Origin::Dynamic => f.write_str("/config"),
            Origin::Default => f.write_str("(default)"),
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident => $text:literal,)+) => {
        /// The name of a finding: stable, for filters and for a look into the documentation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])+ $name,)+ }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The code as it is printed.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)+ }
            }
        }
    };
}

codes! {
    /// The bytes are not UTF-8.
    NotText => "not-text",
    /// The text is not YAML.
    YamlSyntax => "yaml-syntax",
    /// There is nothing in the file.
    EmptyFile => "empty-file",
    /// More than one YAML document; the first one counts.
    SecondDocument => "second-document",
    /// A key is written twice in one section; the later one counts.
    DuplicateKey => "duplicate-key",
    /// A key that is a list or a map.
    ComplexKey => "complex-key",
    /// A YAML tag with no meaning here.
    UnknownTag => "unknown-tag",
    /// Too large, or nested too deeply, or an alias that multiplies beyond reason.
    TooLarge => "too-large",
    /// `${NAME}` with a variable that is not set.
    UnsetVariable => "unset-variable",
    /// `${…}` of a form that only a shell knows; left as it is.
    ShellExpansion => "shell-expansion",
    /// A key that nothing reads.
    UnknownKey => "unknown-key",
    /// A `PATRONI_…` variable that nothing reads.
    UnknownVariable => "unknown-variable",
    /// A value of the wrong kind.
    WrongType => "wrong-type",
    /// A number outside of what is possible.
    OutOfRange => "out-of-range",
    /// A word that is not among the possible ones.
    InvalidValue => "invalid-value",
    /// Not an address.
    InvalidAddress => "invalid-address",
    /// A setting without which nothing can start.
    Missing => "missing",
    /// Read and understood; it has no effect here.
    NoEffect => "no-effect",
    /// An older spelling, read as the newer one.
    OldName => "old-name",
    /// A key of the dynamic configuration in the file, or the other way round.
    WrongPlace => "wrong-place",
    /// A store other than etcd, or an extension, that the agent does not work with.
    NotSupported => "not-supported",
    /// The `etcd` section, which for Patroni means etcd's API v2, is taken as v3.
    EtcdAsV3 => "etcd-as-v3",
    /// etcd's endpoints by DNS SRV records.
    EtcdSrv => "etcd-srv",
    /// etcd's certificate is verified where Patroni would not.
    EtcdVerified => "etcd-verified",
    /// An address that other members cannot reach.
    LocalAddress => "local-address",
    /// A private key behind a password.
    EncryptedKey => "encrypted-key",
    /// A number with a unit that Patroni does not read here.
    UnitNotInPatroni => "unit-not-in-patroni",
    /// `loop_wait + 2·retry_timeout ≤ ttl` was broken.
    TimersAdjusted => "timers-adjusted",
    /// A `ttl` that Patroni would raise to 20.
    TtlBelowPatroni => "ttl-below-patroni",
    /// Two tags that say opposite things.
    ConflictingTags => "conflicting-tags",
    /// The watchdog leaves too little time.
    WatchdogTimeout => "watchdog-timeout",
    /// An option that the agent gives itself.
    ReservedOption => "reserved-option",
    /// The method that is to make the cluster has no section.
    UndefinedMethod => "undefined-method",
    /// A section of a method that nothing names.
    UnusedMethod => "unused-method",
    /// A slot's name or definition cannot be used.
    InvalidSlot => "invalid-slot",
    /// A parameter that is the same on all members, and so comes from the dynamic configuration only.
    ClusterWideParameter => "cluster-wide-parameter",
    /// A parameter that the agent sets itself.
    ManagedParameter => "managed-parameter",
    /// A parameter that would do harm; left out.
    RefusedParameter => "refused-parameter",
    /// A parameter that is allowed and dangerous.
    RiskyParameter => "risky-parameter",
    /// A parameter with another name in this version.
    RenamedParameter => "renamed-parameter",
    /// A parameter that this version does not have.
    ParameterNotInVersion => "parameter-not-in-version",
    /// A parameter that PostgreSQL does not know.
    UnknownParameter => "unknown-parameter",
    /// A parameter's value that PostgreSQL would refuse.
    InvalidParameter => "invalid-parameter",
    /// `recovery_conf` inside of `parameters`.
    NestedRecoveryConf => "nested-recovery-conf",
    /// A recovery setting among the parameters.
    RecoveryParameter => "recovery-parameter",
    /// A relative directory for sockets.
    RelativeSocketDirectory => "relative-socket-directory",
    /// A `data_dir` that depends on where the agent was started.
    RelativeDataDirectory => "relative-data-directory",
    /// A host name with a mask, which PostgreSQL refuses to start with.
    HbaHostMask => "hba-host-mask",
    /// A line of `pg_hba.conf` that PostgreSQL would refuse.
    HbaLine => "hba-line",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// Its name.
    pub code: Code,
    /// Where the value was written; for a missing one, the section it belongs in.
    pub origin: Origin,
    /// The key, from the top: `postgresql.authentication.superuser.username`. Empty for the whole file.
    pub path: String,
    /// What is the matter. Never holds a password.
    pub message: String,
    /// What was done instead.
    pub done: Option<String>,
    /// What a person can do.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(crate) fn new(
        severity: Severity,
        code: Code,
        origin: &Origin,
        path: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            code,
            origin: origin.clone(),
            path: path.into(),
            message: message.into(),
            done: None,
            help: None,
        }
    }

    pub(crate) fn done(mut self, done: impl Into<String>) -> Self {
        self.done = Some(done.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}[{}]: ", self.origin, self.severity, self.code)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(done) = &self.done {
            write!(f, "\n    done: {done}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n    help: {help}")?;
        }
        Ok(())
    }
}

/// Everything that was found, in the order of the file.
///
/// Its `Display` is what `leaderpool-agent --validate` prints: one finding after the other, in a
/// compiler's form (`file:line:column: severity[code]: key: …`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// Adds what `other` holds, and puts all of it in the order of the file.
    pub fn extend(&mut self, other: Diagnostics) {
        self.list.extend(other.list);
        self.sort();
    }

    /// In the order of the file, each finding once: an alias, or a second role, brings the same place into view
    /// again.
    pub(crate) fn sort(&mut self) {
        self.list.sort_by(|a, b| (&a.origin, &a.path).cmp(&(&b.origin, &b.path)));
        self.list.dedup();
    }

    /// The findings.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are of `severity`.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|d| d.severity == severity).count()
    }

    /// Whether any finding forbids the use of the configuration.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// The findings named `code`.
    pub fn of(&self, code: Code) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter().filter(move |d| d.code == code)
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}
