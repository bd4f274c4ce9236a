//! PostgreSQL as a child process.
