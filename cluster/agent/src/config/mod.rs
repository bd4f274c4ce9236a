//! `patroni.yml`, the environment and the dynamic configuration.
