//! The accounts of a new cluster.

use std::time::Duration;

use leaderpool::config::Secret;

use crate::postgres::quote::{sql_ident, sql_literal};
use crate::postgres::session::{Session, SessionError};
use crate::postgres::settings::{Account, ServerSettings};

/// The longest that making one account may take.
const EACH: Duration = Duration::from_secs(30);

/// What `pg_rewind` calls on the leader, which only a superuser may by default.
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// Options of a role that a configuration may give, by their first word.
const OPTIONS: [&str; 17] = [
    "SUPERUSER",
    "NOSUPERUSER",
    "CREATEDB",
    "NOCREATEDB",
    "CREATEROLE",
    "NOCREATEROLE",
    "INHERIT",
    "NOINHERIT",
    "LOGIN",
    "NOLOGIN",
    "REPLICATION",
    "NOREPLICATION",
    "BYPASSRLS",
    "NOBYPASSRLS",
    "CONNECTION",
    "VALID",
    "IN",
];

/// An account that the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAccount {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Option<Secret>,
    /// Options of `CREATE ROLE`, such as `createdb` or `connection limit 5`. It may log in unless one says otherwise.
    pub options: Vec<String>,
}

/// Why an account was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccountError {
    /// It has an option that is none.
    #[error("the user {user:?} has the option {option:?}, which CREATE ROLE does not know")]
    Option {
        /// The account.
        user: String,
        /// The option.
        option: String,
    },
    /// The server refused, or does not answer.
    #[error("cannot create the user {user:?}: {source}")]
    Session {
        /// The account.
        user: String,
        /// Why.
        #[source]
        source: SessionError,
    },
}

/// Makes the accounts that the cluster works with: the superuser with its password, the one that replicates, the one that
/// rewinds; then those of the configuration. One that exists is changed.
pub(super) async fn superuser(
    session: &Session,
    settings: &ServerSettings,
) -> Result<(), AccountError> {
    if settings.superuser.password.is_none() {
        return Ok(());
    }
    make(session, &of(&settings.superuser, &["SUPERUSER"])).await
}

pub(super) async fn others(
    session: &Session,
    settings: &ServerSettings,
    more: &[NewAccount],
) -> Result<(), AccountError> {
    make(session, &of(&settings.replication, &["REPLICATION"])).await?;
    if let Some(rewind) =
        settings.rewind.as_ref().filter(|r| r.username != settings.superuser.username)
    {
        make(session, &of(rewind, &[])).await?;
        let grants: Vec<String> = REWIND_FUNCTIONS
            .iter()
            .map(|f| {
                format!(
                    "GRANT EXECUTE ON FUNCTION pg_catalog.{f} TO {}",
                    sql_ident(&rewind.username)
                )
            })
            .collect();
        run(session, &rewind.username, &grants.join(";\n")).await?;
    }
    for account in more {
        make(session, account).await?;
    }
    Ok(())
}

fn of(account: &Account, options: &[&str]) -> NewAccount {
    NewAccount {
        name: account.username.clone(),
        password: account.password.clone(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

async fn make(session: &Session, account: &NewAccount) -> Result<(), AccountError> {
    let user = account.name.as_str();
    let sql = "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1";
    let found = session.rows("look for a role", sql, &[&user]).await;
    let exists = found.map_err(|source| AccountError::Session { user: user.to_owned(), source })?;
    let verb = if exists.is_empty() { "CREATE" } else { "ALTER" };
    run(session, user, &format!("{verb} {}", role_clause(account)?)).await
}

/// Makes the server silent about what follows: the password must not come into its log, or into the statistics of
/// statements. Sent by itself, since a message is logged before any of it is carried out.
const QUIET: &str = "SET synchronous_commit = local; SET log_statement = none; SET log_duration = off; \
    SET log_min_duration_statement = -1; SET log_min_duration_sample = -1; SET log_transaction_sample_rate = 0; \
    SET log_min_error_statement = panic; SET track_activities = off; \
    SET pg_stat_statements.track_utility = off; SET pgaudit.log = none";

async fn run(session: &Session, user: &str, sql: &str) -> Result<(), AccountError> {
    let quiet = if session.version().major >= 13 {
        QUIET.to_owned()
    } else {
        QUIET.replace("SET log_min_duration_sample = -1; ", "")
    };
    let done = session.run_apart("create a role", &[&quiet, sql], EACH).await;
    done.map_err(|source| AccountError::Session { user: user.to_owned(), source })
}

fn role_clause(account: &NewAccount) -> Result<String, AccountError> {
    let mut options = Vec::new();
    for option in &account.options {
        let upper = option.trim().to_ascii_uppercase();
        let known = upper.split_whitespace().next().is_some_and(|word| OPTIONS.contains(&word));
        // A quoted date follows VALID UNTIL; nothing else needs more than words.
        let plain = |c: char| c.is_ascii_alphanumeric() || " _-:'".contains(c);
        if !known || !option.chars().all(plain) || option.matches('\'').count() % 2 != 0 {
            let (user, option) = (account.name.clone(), option.clone());
            return Err(AccountError::Option { user, option });
        }
        options.push(if option.contains('\'') { option.trim().to_owned() } else { upper });
    }
    if !options.iter().any(|option| option == "LOGIN" || option == "NOLOGIN") {
        options.push("LOGIN".to_owned());
    }
    if let Some(password) = &account.password {
        options.push(format!("PASSWORD {}", sql_literal(password.expose())));
    }
    Ok(format!("ROLE {} WITH {}", sql_ident(&account.name), options.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clause(name: &str, password: &str, options: &[&str]) -> Result<String, AccountError> {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        role_clause(&NewAccount { name: name.into(), password: Some(password.into()), options })
    }

    #[test]
    fn roles_are_quoted_and_may_log_in() {
        assert_eq!(
            clause("a\"b", "it's", &["createrole", "createdb"]).unwrap(),
            "ROLE \"a\"\"b\" WITH CREATEROLE CREATEDB LOGIN PASSWORD 'it''s'"
        );
        assert_eq!(
            clause("x", "y", &["nologin", "valid until '2030-01-01'"]).unwrap(),
            "ROLE \"x\" WITH NOLOGIN valid until '2030-01-01' PASSWORD 'y'"
        );
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for bad in ["createdb; drop table x", "nonsense", "password 'x'", "valid until '"] {
            assert!(clause("x", "y", &[bad]).is_err(), "{bad}");
        }
    }
}
