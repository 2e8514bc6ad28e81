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
  # Of the user as whom Packer logs in to the VM of the source qemu.
  password = uuidv4()
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

# The same image without a cloud account, from a cloud image such as Debian's "genericcloud":
#
#   packer build -only=qemu.openclaw -var qemu_disk=debian-12-genericcloud-amd64.qcow2 packer
source "qemu" "openclaw" {
  iso_url      = var.qemu_disk
  iso_checksum = var.qemu_checksum
  disk_image   = true
  disk_size    = "${var.disk_size}G"
  format       = "qcow2"
  accelerator  = var.qemu_accelerator
  headless     = true
  cd_files     = ["${path.root}/seed/meta-data", "${path.root}/seed/user-data"]
  cd_label     = "cidata"
  qemuargs = [
    ["-smp", "2"],
    ["-m", "2048"],
    ["-smbios", "type=3,asset=${local.password}"],
  ]

  ssh_username = "packer"
  ssh_password = local.password
  ssh_timeout  = "30m"

  # The last command removes the user who gives it, and what the tools keep of a user who was removed.
  shutdown_command = join(" ", [
    "sudo sh -c 'userdel --force --remove packer;",
    "rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-",
    "/etc/sudoers.d/90-cloud-init-users /etc/ssh/sshd_config.d/50-cloud-init.conf;",
    "systemctl poweroff'",
  ])
  shutdown_timeout = "10m"
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
