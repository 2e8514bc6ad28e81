//! Machines with a kernel and disks of their own, in QEMU: for what a container of this machine's kernel cannot show,
//! above all what a disk holds after the power was cut.
//!
//! Without KVM, a processor that is emulated is some twenty times slower than the real one. So there is one such
//! machine at a time, and its gateway is the fake one.

pub mod agent;
pub mod image;
pub mod vm;
