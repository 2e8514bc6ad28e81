variable "binary" {
  type        = string
  description = "The openclaw-init binary to bake in."
  default     = "target/x86_64-unknown-linux-gnu/release/openclaw-init"
}

variable "openclaw_version" {
  type        = string
  description = "Gateway version to bake in; empty: the one that the binary was made for."
  default     = ""

  validation {
    condition     = regex_replace(var.openclaw_version, "^([0-9]+\\.[0-9]+\\.[0-9]+[0-9A-Za-z.-]*)?$", "valid") == "valid"
    error_message = "The value of openclaw_version must be an exact version such as 2026.9.6, or empty."
  }
}

variable "openclaw_image" {
  type        = string
  description = "The gateway's image to bake in, by tag or digest, instead of openclaw_version and image_source."
  default     = ""

  validation {
    condition     = regex_replace(var.openclaw_image, "^([a-z0-9][0-9A-Za-z._/:@-]*)?$", "valid") == "valid"
    error_message = "The value of openclaw_image must be an image reference such as registry.example/openclaw:1, or empty."
  }
}

variable "image_source" {
  type        = string
  description = "Where the gateway's image comes from: release (the official one) or npm (built from the npm package)."
  default     = "release"

  validation {
    condition     = contains(["release", "npm"], var.image_source)
    error_message = "The value of image_source must be release or npm."
  }
}

variable "project_id" {
  type        = string
  description = "Google Cloud project in which the image is made."
  default     = ""

  validation {
    condition     = regex_replace(var.project_id, "^([a-z][-a-z0-9]{4,28}[a-z0-9])?$", "valid") == "valid"
    error_message = "The value of project_id must be a project id: 6 to 30 lower-case letters, digits and dashes."
  }
}

variable "zone" {
  type        = string
  description = "Zone of the VM that makes the image."
  default     = "us-central1-a"

  validation {
    condition     = regex_replace(var.zone, "^[a-z]+-[a-z]+[0-9]+-[a-z]$", "valid") == "valid"
    error_message = "The value of zone must be a zone such as us-central1-a."
  }
}

variable "source_image_family" {
  type        = string
  description = "What the image is made from; tested with Debian 12 and 13."
  default     = "debian-12"
}

variable "image_family" {
  type        = string
  description = "Family of the image; its newest image is what --image-family means."
  default     = "openclaw"

  validation {
    condition     = regex_replace(var.image_family, "^[a-z]([-a-z0-9]{0,46}[a-z0-9])?$", "valid") == "valid"
    error_message = "The value of image_family must be lower-case letters, digits and dashes, at most 48."
  }
}

variable "machine_type" {
  type        = string
  description = "Machine type of the VM that makes the image."
  default     = "e2-standard-2"
}

variable "disk_size" {
  type        = number
  description = "Size of the image in GB; a boot disk made from it is at least as large."
  default     = 10

  validation {
    condition     = var.disk_size >= 10
    error_message = "The value of disk_size must be at least 10."
  }
}

variable "subnetwork" {
  type        = string
  description = "Subnetwork of the VM that makes the image; it must reach the internet."
  default     = "default"
}

variable "qemu_disk" {
  type        = string
  description = "File or URL of a cloud image (qcow2) with cloud-init, for the source qemu."
  default     = "debian-12-genericcloud-amd64.qcow2"
}

variable "qemu_checksum" {
  type        = string
  description = "Checksum of qemu_disk, like sha512:..., or none."
  default     = "none"
}

variable "qemu_accelerator" {
  type        = string
  description = "kvm, or tcg where the machine cannot virtualise."
  default     = "kvm"

  validation {
    condition     = contains(["kvm", "tcg"], var.qemu_accelerator)
    error_message = "The value of qemu_accelerator must be kvm or tcg."
  }
}
