//! The machine of one lab, in systemd-nspawn or in QEMU, with its disks.

pub mod attach;
pub mod boot_disk;
pub mod boot_image;
pub mod cloud_init;
pub mod control_group;
pub mod disks;
mod nspawn;
pub mod qemu;
pub mod rootfs;
pub mod tunnel;

pub use nspawn::{cut, inside, pid_one, reboot, runs, start, stop, supervise};
