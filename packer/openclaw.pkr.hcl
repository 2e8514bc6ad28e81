# An image whose machines need no internet at their first boot: they only prepare the disk, the secrets and the
# container.
#
#   packer init packer
#   packer build -only=googlecompute.openclaw -var project_id=PROJECT packer

locals {
  bake = join(" ", compact([
    "--image-source=${var.image_source}",
    var.openclaw_version == "" ? "" : "--version=${var.openclaw_version}",
    var.openclaw_image == "" ? "" : "--image=${var.openclaw_image}",
  ]))
}

source "googlecompute" "openclaw" {
  project_id          = var.project_id
  zone                = var.zone
  source_image_family = var.source_image_family
  machine_type        = var.machine_type
  subnetwork          = var.subnetwork
  disk_size           = var.disk_size
  disk_type           = "pd-balanced"

  image_name        = "${var.image_family}-${formatdate("YYYYMMDD-hhmmss", timestamp())}"
  image_family      = var.image_family
  image_description = "OpenClaw gateway, baked by openclaw-init"

  # The VM needs no rights, and provisions over SSH: a wrapped startup script would need a service account.
  disable_default_service_account = true
  wrap_startup_script             = false

  ssh_username              = "packer"
  ssh_clear_authorized_keys = true
}

# The same image without a cloud account.
source "qemu" "openclaw" {
  iso_url      = var.qemu_disk
  iso_checksum = var.qemu_checksum
  disk_image   = true
  disk_size    = "${var.disk_size}G"
  format       = "qcow2"
  accelerator  = var.qemu_accelerator
  cpus         = 2
  memory       = 4096
  headless     = true
  cd_files     = var.qemu_seed
  cd_label     = "cidata"

  ssh_username         = var.qemu_username
  ssh_private_key_file = var.qemu_private_key
  ssh_timeout          = "15m"
  shutdown_command     = "sudo poweroff"
}

build {
  sources = ["source.googlecompute.openclaw", "source.qemu.openclaw"]

  provisioner "file" {
    source      = var.binary
    destination = "/tmp/openclaw-init"
  }

  # seal is the last command: what runs after it may leave traces in the image.
  provisioner "shell" {
    inline = [
      "if command -v cloud-init > /dev/null; then cloud-init status --wait > /dev/null || true; fi",
      "chmod 0755 /tmp/openclaw-init",
      "sudo /tmp/openclaw-init bake ${local.bake}",
      "rm /tmp/openclaw-init",
      "sudo openclaw-init seal",
    ]
  }
}
