//! `leaderpool-agent`: one beside each PostgreSQL server.

fn main() {}
