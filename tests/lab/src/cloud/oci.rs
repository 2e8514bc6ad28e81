//! An OCI image layout, written without Docker: archives of what changed in a tree, and the documents around them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::files::sha256;
use crate::program::run;

/// One layer: a compressed archive in the layout.
#[derive(Debug, Clone)]
pub struct Layer {
    blob: Blob,
    /// SHA-256 of the archive before compression, `sha256:` and hex.
    diff_id: String,
}

/// A piece of content in the layout.
#[derive(Debug, Clone)]
struct Blob {
    /// `sha256:` and hex.
    digest: String,
    size: u64,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": self.digest, "size": self.size })
    }
}

/// An OCI image layout: a directory of blobs and one index.
#[derive(Debug)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// Starts an empty one.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory.join("blobs/sha256"))
            .with_context(|| format!("creating {}", directory.display()))?;
        let layout = Self { directory: directory.to_owned() };
        layout.write("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        layout.write("index.json", &json!({ "schemaVersion": 2, "manifests": [] }))?;
        Ok(layout)
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Everything below `root` whose content or attributes changed after `mark` was made.
    pub fn layer(&self, root: &Path, mark: &Path) -> Result<Layer> {
        let archive = self.directory.join("layer.tar");
        let mut tar = Command::new("sh");
        tar.current_dir(root).env("MARK", mark).env("ARCHIVE", &archive).args([
            "-euc",
            "find . -mindepth 1 -xdev -cnewer \"$MARK\" -print0 | LC_ALL=C sort --zero-terminated \
             | tar --create --file=\"$ARCHIVE\" --numeric-owner --null --no-recursion --files-from=-",
        ]);
        run(&mut tar)?;
        let diff_id = digest(&archive)?;
        run(Command::new("gzip").args(["-1", "--no-name", "--force"]).arg(&archive))?;
        Ok(Layer { blob: self.adopt(&archive.with_extension("tar.gz"))?, diff_id })
    }

    /// Adds the image `repository:tag` with upstream's outer form: an index with one manifest per platform.
    pub fn image(&self, repository: &str, tag: &str, layers: &[Layer], config: &Value) -> Result<()> {
        let platform = json!({ "architecture": "amd64", "os": "linux" });
        let config = self.blob(&json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-09-23T16:33:00Z",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|it| &it.diff_id).collect::<Vec<_>>() },
        }))?;
        let layers: Vec<Value> = layers.iter().map(|it| it.blob.descriptor("layer.v1.tar+gzip")).collect();
        let manifest = self.blob(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("config.v1+json"),
            "layers": layers,
        }))?;
        let mut manifest = manifest.descriptor("manifest.v1+json");
        manifest["platform"] = platform;
        let index = self.blob(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        }))?;
        let mut index = index.descriptor("index.v1+json");
        index["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("{repository}:{tag}") });

        let mut top = self.index()?;
        top["manifests"].as_array_mut().context("the layout's index has no list of manifests")?.push(index);
        self.write("index.json", &top)
    }

    /// The names of all images, `repository:tag`.
    pub fn names(&self) -> Result<Vec<String>> {
        let index = self.index()?;
        let manifests = index["manifests"].as_array().context("the layout's index has no list of manifests")?;
        let name = |it: &Value| it["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned);
        manifests.iter().map(|it| name(it).context("an image without a name")).collect()
    }

    fn index(&self) -> Result<Value> {
        let text = fs::read(self.directory.join("index.json")).context("reading the layout's index")?;
        serde_json::from_slice(&text).context("reading the layout's index")
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, value.to_string()).with_context(|| format!("writing {}", path.display()))
    }

    fn blob(&self, value: &Value) -> Result<Blob> {
        self.write("blob.json", value)?;
        self.adopt(&self.directory.join("blob.json"))
    }

    /// Moves a file among the blobs.
    fn adopt(&self, file: &Path) -> Result<Blob> {
        let digest = digest(file)?;
        let size = file.metadata().with_context(|| format!("measuring {}", file.display()))?.len();
        let name = digest.trim_start_matches("sha256:");
        fs::rename(file, self.directory.join("blobs/sha256").join(name))
            .with_context(|| format!("moving {}", file.display()))?;
        Ok(Blob { digest, size })
    }
}

/// The digest of a file as a registry writes it.
fn digest(file: &Path) -> Result<String> {
    Ok(format!("sha256:{}", sha256(file)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::File;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_layer_has_what_changed_after_the_mark_and_an_image_is_an_index_of_one_platform() {
        let directory = tempfile::tempdir().unwrap();
        let (root, mark) = (directory.path().join("root"), directory.path().join("mark"));
        fs::create_dir_all(root.join("kept/inner")).unwrap();
        fs::write(root.join("kept/old"), "old").unwrap();
        sleep(Duration::from_millis(20));
        File::create(&mark).unwrap();
        sleep(Duration::from_millis(20));
        fs::write(root.join("kept/inner/new"), "new").unwrap();

        let layout = Layout::create(&directory.path().join("oci")).unwrap();
        let layer = layout.layer(&root, &mark).unwrap();
        layout.image("some/where", "1.0", std::slice::from_ref(&layer), &json!({ "User": "node" })).unwrap();

        let blob = |digest: &str| layout.directory().join("blobs").join(digest.replacen(':', "/", 1));
        let read = |digest: &Value| -> Value {
            serde_json::from_slice(&fs::read(blob(digest.as_str().unwrap())).unwrap()).unwrap()
        };
        assert_eq!(layout.names().unwrap(), ["some/where:1.0"]);
        let index = read(&layout.index().unwrap()["manifests"][0]["digest"]);
        assert_eq!(index["manifests"][0]["platform"]["architecture"], "amd64");
        let manifest = read(&index["manifests"][0]["digest"]);
        let config = read(&manifest["config"]["digest"]);
        assert_eq!(config["config"]["User"], "node");
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.diff_id.as_str());
        let archive = blob(manifest["layers"][0]["digest"].as_str().unwrap());
        let listing = run(Command::new("tar").arg("--list").arg("--gzip").arg("--file").arg(archive)).unwrap();
        assert_eq!(listing, "./kept/inner/\n./kept/inner/new\n");
    }
}
