//! What must be seen of a whole machine, from outside: every scenario boots real machines with `lab up`.
//!
//! Scenarios are independent and run side by side; each uses the command line that a person would use.

mod backups;
mod baked;
mod bench;
mod binary;
mod budget;
mod checks;
mod cloud_init;
mod configured;
mod contents;
mod cuts;
mod day;
mod disks;
mod domain;
mod engines;
mod evil;
mod failures;
mod first_boot;
mod gateway_cli;
mod growth;
mod identity;
mod lab_itself;
mod loader;
mod moving;
mod operations;
mod packer;
mod pages;
mod pairing;
mod power;
mod private_registry;
mod random;
mod readme;
mod rig;
mod secrets;
mod settings;
mod shield;
mod sources;
mod status;
mod strangers;
mod updates;
mod vm_bench;
mod watch;

use anyhow::Result;

pub(crate) use bench::compare;
pub(crate) use rig::{Binaries, Rig};

/// A name, which is also the machine's, and what is done with it.
pub(crate) type Scenario = (&'static str, fn(&Rig) -> Result<()>);

/// Longest first, so that the end of the run is not one machine alone.
pub(crate) const GATE: &[Scenario] = &[
    ("configured", configured::every_way_of_use),
    ("domain", domain::https_at_a_name),
    ("disk-corpus", disks::every_kind_of_disk),
    ("main-job", first_boot::main_job_reboots_and_updates),
    ("readme", readme::script_from_top_to_bottom),
    ("debian-13", sources::debian_13),
    ("wrong-turns", failures::every_wrong_turn_then_ready),
    ("binary-way", readme::plain_ways),
    ("private-registry", private_registry::private_registry_with_the_vms_account),
    ("backup-restore", backups::backup_and_restore),
    ("source", contents::source_of_a_commit_is_built),
    ("binaries", contents::binaries_and_packages_are_part_of_the_image),
    ("baked-image", baked::sealed_image_boots_without_internet),
    ("cloud-init", cloud_init::boots_and_other_carriers),
    ("loader", loader::script_with_every_turn_of_the_loader),
    ("update-real", updates::real_versions_there_and_back),
    ("data-disk", disks::data_disk_outlives_its_machine),
    ("moving-in", moving::state_moves_to_a_data_disk),
    ("cuts", cuts::at_chosen_points),
    ("baked-13", baked::baked_on_debian_13),
    ("small", sources::npm_in_two_gigabytes_of_memory_and_a_small_boot_disk),
    ("closed-doors", failures::every_door_but_one_is_closed),
];

/// What mostly waits, or is short: one after the other, beside the others.
pub(crate) const LIGHT: &[Scenario] = &[
    ("silent-metadata", failures::metadata_server_silent_for_ever),
    ("watch", watch::what_happens_between_boots),
    ("hour", day::of_twenty_faults),
    ("update-broken", updates::broken_versions_are_undone),
    ("slow-disks", disks::slow_and_failing_disks),
    ("foreign-disk", failures::foreign_disk_is_left_untouched),
    ("lab-itself", lab_itself::lab_itself),
    ("two-keys", failures::docker_repository_with_two_keys),
    ("wrong-key", failures::docker_repository_with_the_wrong_key),
    ("clients", sources::real_clients_accept_the_metadata_server),
    ("packer", baked::packer_template_is_valid),
    ("shellcheck", loader::shell_scripts_are_clean),
    ("binary", binary::static_small_and_alone),
];

/// What takes too long for every day: `--long`.
pub(crate) const LONG: &[Scenario] = &[
    ("browser", readme::conversation_outlives_its_vm),
    ("plain-commands", domain::plain_commands),
    ("own-address", domain::conversation_at_the_gateways_own_address),
    ("modes-in-browser", domain::every_mode_in_a_browser),
    ("watch-hung", watch::a_gateway_that_hangs_is_restarted),
    ("slow-start", updates::a_slow_start_is_waited_for),
    ("day", day::of_two_hundred_faults),
    ("evil", evil::plays_for_ten_minutes),
    ("shield-13", shield::on_debian_13),
    ("sweep-first-boot", cuts::all_of_a_first_boot),
    ("sweep-update", cuts::all_of_an_update),
    ("sweep-rollback", cuts::all_of_a_rollback),
    ("sweep-bare", cuts::all_of_a_bare_machine),
    ("sweep-reboot", cuts::all_of_a_reboot),
    ("sweep-container", cuts::all_of_another_container),
    ("sweep-moving-in", cuts::all_of_moving_in),
    ("sweep-restore", cuts::all_of_a_restore),
    ("power-cuts", power::state_survives_cuts_at_any_moment),
    ("packer-build", packer::built_image_boots_without_internet),
    ("disk-thousand", disks::data_on_a_thousand_disks),
    ("disk-growth", growth::data_disk_grows_while_it_is_used),
    ("engines", engines::builds_on_old_and_new_engines),
    ("containerd-store", engines::containerds_image_store),
    ("one-gigabyte", engines::one_gigabyte_is_enough_or_named),
    ("ten-updates", engines::ten_updates_leave_two_images),
];
