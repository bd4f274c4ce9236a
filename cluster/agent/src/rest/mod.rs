//! Patroni's HTTP API.
