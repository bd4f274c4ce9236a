//! SQLSTATE codes and their classes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A five-character SQLSTATE, as in `40001`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SqlState5([u8; 5]);

impl SqlState5 {
    /// The code, where it is five digits and upper-case letters.
    #[must_use]
    pub fn new(code: [u8; 5]) -> Option<Self> {
        code.iter()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
            .then_some(Self(code))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // ASCII, by construction.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The class: its first two characters.
    #[must_use]
    pub fn class(&self) -> SqlClass {
        SqlClass::of(&self.0[..2])
    }
}

impl fmt::Display for SqlState5 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState5 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no SQLSTATE.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an SQLSTATE (five digits or upper-case letters): {0:?}")]
pub struct SqlStateParseError(String);

impl FromStr for SqlState5 {
    type Err = SqlStateParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        <[u8; 5]>::try_from(text.as_bytes())
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| SqlStateParseError(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for SqlState5 {
    type Error = SqlStateParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SqlState5> for String {
    fn from(code: SqlState5) -> Self {
        code.as_str().to_owned()
    }
}

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// The classes of PostgreSQL 18's appendix A, with those that older versions have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum SqlClass {
            $($(#[doc = $doc])+ $name,)+
            /// Any other: an extension's, or the user's own by `RAISE … USING ERRCODE`.
            Other,
        }

        impl SqlClass {
            /// Every class, `Other` last.
            pub const ALL: &[SqlClass] = &[$(SqlClass::$name,)+ SqlClass::Other];

            fn of(prefix: &[u8]) -> Self {
                $(if prefix == $code.as_bytes() {
                    return SqlClass::$name;
                })+
                SqlClass::Other
            }

            /// The two characters; `None` for `Other`.
            #[must_use]
            pub fn prefix(self) -> Option<&'static str> {
                match self {
                    $(SqlClass::$name => Some($code),)+
                    SqlClass::Other => None,
                }
            }
        }
    };
}

classes! {
    /// Success.
    Successful = "00",
    /// A warning.
    Warning = "01",
    /// No data: a warning too.
    NoData = "02",
    /// The statement is not complete yet.
    NotYetComplete = "03",
    /// The connection, the server's own or one that it made to elsewhere.
    Connection = "08",
    /// A triggered action failed.
    TriggeredAction = "09",
    /// Not supported.
    FeatureNotSupported = "0A",
    /// A transaction cannot begin here.
    InvalidTransactionInitiation = "0B",
    /// A locator.
    Locator = "0F",
    /// The grantor.
    InvalidGrantor = "0L",
    /// The role.
    InvalidRole = "0P",
    /// Diagnostics asked for outside of a handler.
    Diagnostics = "0Z",
    /// XQuery (PostgreSQL 18).
    XQuery = "10",
    /// No `CASE` matched.
    CaseNotFound = "20",
    /// More than one row.
    Cardinality = "21",
    /// The data.
    Data = "22",
    /// A constraint.
    IntegrityConstraint = "23",
    /// The cursor's state.
    InvalidCursorState = "24",
    /// The transaction's state; `25006` is a write on a read-only server.
    InvalidTransactionState = "25",
    /// The prepared statement.
    InvalidStatementName = "26",
    /// A trigger changed what it must not.
    TriggeredDataChange = "27",
    /// The login.
    InvalidAuthorization = "28",
    /// Privileges still depend on it.
    DependentPrivileges = "2B",
    /// A transaction cannot end here.
    InvalidTransactionTermination = "2D",
    /// An SQL routine.
    SqlRoutine = "2F",
    /// The cursor's name.
    InvalidCursorName = "34",
    /// An external routine.
    ExternalRoutine = "38",
    /// The call of an external routine.
    ExternalRoutineInvocation = "39",
    /// A savepoint.
    Savepoint = "3B",
    /// The database's name.
    InvalidCatalogName = "3D",
    /// The schema's name.
    InvalidSchemaName = "3F",
    /// The transaction was rolled back: serialization failure, deadlock.
    TransactionRollback = "40",
    /// Syntax, names, privileges.
    SyntaxOrAccess = "42",
    /// `WITH CHECK OPTION`.
    WithCheckOption = "44",
    /// Disk, memory, connections.
    InsufficientResources = "53",
    /// Too complex.
    ProgramLimit = "54",
    /// The object is not in the right state, or is locked.
    ObjectState = "55",
    /// An operator, a time limit, a shutdown, a crash.
    OperatorIntervention = "57",
    /// The operating system.
    System = "58",
    /// The snapshot is too old (up to PostgreSQL 16).
    Snapshot = "72",
    /// The configuration file.
    ConfigurationFile = "F0",
    /// A foreign data wrapper.
    ForeignData = "HV",
    /// PL/pgSQL, `RAISE` without a code of its own among it.
    PlPgSql = "P0",
    /// An internal error.
    Internal = "XX",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_parse_print_and_refuse() {
        let code: SqlState5 = "40P01".parse().expect("a code");
        assert_eq!(code.to_string(), "40P01");
        assert_eq!(code.class(), SqlClass::TransactionRollback);
        assert_eq!("ZZ123".parse::<SqlState5>().expect("a code").class(), SqlClass::Other);
        for bad in ["", "4000", "400011", "4000a", "40 01", "4000é"] {
            assert!(bad.parse::<SqlState5>().is_err(), "{bad:?} must be refused");
        }
        let json = serde_json::to_string(&code).expect("serialises");
        assert_eq!(json, "\"40P01\"");
        assert_eq!(serde_json::from_str::<SqlState5>(&json).expect("reads back"), code);
    }

    #[test]
    fn every_class_is_its_own() {
        for class in SqlClass::ALL {
            let Some(prefix) = class.prefix() else { continue };
            let code: SqlState5 = format!("{prefix}000").parse().expect("a code");
            assert_eq!(code.class(), *class);
        }
    }
}
