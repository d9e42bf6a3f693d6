//! Containers: create, start, attach, wait, logs, stop, remove and the rest of `/containers`.

mod create;
