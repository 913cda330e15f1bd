//! A Hugging Face model folder: opened by memory map and checked against its config before anything expensive starts.
//!
//! Does not build a decoder and does not write; that is [`crate::decoder`] and [`crate::export`].

mod locate;
mod mapped;
mod pytorch;
mod remote;
mod stored;

use crate::family::{Expected, Names, Role};
use crate::tensor_file::{TensorInfo, TensorSpec, bytes_of};
use crate::{BlockLayers, ModelConfig, ModelError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use stored::{StoredFile, hash_file};
use tch::{Device, Kind, Tensor};
use types::{InvalidId, ModelPlace, Sizes};

/// Returns the tensors in the bytes of a `pytorch_model.bin`, on the CPU, one after the other; those of number formats that
/// we do not compute in are left out. For fuzzing: models are read by [`ModelFolder`].
#[doc(hidden)]
pub fn pytorch_tensors(bytes: &[u8]) -> Result<impl Iterator<Item = Result<(String, Tensor), ModelError>>, ModelError> {
    let tensors = pytorch::tensors(bytes, Path::new("pytorch_model.bin"))?;
    Ok(tensors.into_iter().filter_map(|(name, info)| {
        let kind = info.kind?;
        Some(info.tensor(&bytes[info.range.clone()], kind).map(|tensor| (name, tensor)))
    }))
}

/// A model folder that has everything its config asks for. Cheap to open, whatever the model's size.
#[derive(Debug)]
pub struct ModelFolder {
    place: ModelPlace,
    config: ModelConfig,
    names: Names,
    layers: Vec<BlockLayers>,
    files: Vec<StoredFile>,
    /// Where each stored tensor lies: file and place in it.
    stored: BTreeMap<String, (usize, TensorInfo)>,
    /// The model's tensors, in the order of the forward pass.
    specs: Vec<TensorSpec>,
    sizes: Sizes,
    digest: OnceLock<String>,
}

impl ModelFolder {
    /// Opens the folder `path` and checks that every tensor is there, in the right shape and in bf16, f16 or f32.
    ///
    /// # Errors
    /// [`ModelError::NotAModel`], [`ModelError::Config`], [`ModelError::Unsupported`], [`ModelError::TensorFile`],
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::UnexpectedTensor`].
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::open_at(path.into())
    }

    /// Opens a model whose tensor files may lie elsewhere: of them the headers are read now, each tensor when it is asked for.
    ///
    /// # Errors
    /// As [`Self::open`], and [`ModelError::Remote`].
    pub fn open_at(place: ModelPlace) -> Result<Self, ModelError> {
        let path = place.folder.as_path();
        let config = ModelConfig::read(&locate::config(path)?)?;
        let mut files = Vec::new();
        let mut stored = BTreeMap::new();
        let (format, paths) = locate::tensor_files(&place)?;
        for file in paths {
            let (opened, tensors) = StoredFile::open(&place, &file, format)?;
            for (name, info) in tensors {
                if stored.insert(name.clone(), (files.len(), info)).is_some() {
                    let reason = format!("holds tensor '{name}', which another shard holds as well");
                    return Err(ModelError::TensorFile { file: file.display().to_string(), reason });
                }
            }
            files.push(opened);
        }
        let names = Names::detect(config.family, |name| stored.contains_key(name));
        let layers = (0..config.blocks).map(|block| names.layers(block)).collect::<Result<Vec<_>, InvalidId>>();
        let layers = layers.map_err(|e| ModelError::NotAModel { path: path.to_owned(), reason: e.to_string() })?;
        let expected = names.expected(&config, &layers);
        let mut folder = Self {
            place,
            config,
            names,
            layers,
            files,
            stored,
            specs: Vec::new(),
            sizes: Sizes::default(),
            digest: OnceLock::new(),
        };
        folder.specs = expected.iter().map(|e| folder.check(e)).collect::<Result<_, _>>()?;
        folder.refuse_unexpected(&expected)?;
        folder.refuse_two_heads()?;
        folder.sizes = folder.count(&expected);
        Ok(folder)
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.place.folder
    }

    /// Returns where the model lies.
    pub fn place(&self) -> &ModelPlace {
        &self.place
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the linear layers of each block, by the names that this checkpoint uses.
    pub fn layers(&self) -> &[BlockLayers] {
        &self.layers
    }

    /// Returns name, stored number format and shape of the model's tensors, in the order of the forward pass.
    /// Tensors in the files that are no part of the model, and the head when it is tied, are not among them.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// Returns the shape of a tensor of the model.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.spec(name).map(|spec| spec.shape.as_slice())
    }

    /// Returns the number format of a tensor of the model, as it is stored.
    pub fn stored_kind(&self, name: &str) -> Option<Kind> {
        self.spec(name).map(|spec| spec.kind)
    }

    /// Returns the size of the whole model; a tied head is counted once.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Reads a tensor of the model, converted to `kind`, on `device`.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] for a name that is not in [`Self::tensors`].
    pub fn tensor(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor, ModelError> {
        let Some((file, info)) = self.stored.get(name) else {
            return Err(ModelError::MissingTensor {
                path: self.place.folder.clone(),
                tensor: name.to_owned(),
                shape: Vec::new(),
            });
        };
        let read = || {
            let stored = info.tensor(&self.files[*file].bytes(&info.range)?, self.kind(name, info)?)?;
            Ok(stored.f_to_device(device)?.f_to_kind(kind)?)
        };
        let tensor = read();
        self.files[*file].release(&info.range);
        tensor
    }

    /// Has the system read a tensor's part of its file while something else is done; nothing for a name that is not there.
    pub(crate) fn read_ahead(&self, name: &str) {
        if let Some((file, info)) = self.stored.get(name) {
            self.files[*file].read_ahead(&info.range);
        }
    }

    /// Returns the BLAKE3 digest, in hex, over config.json and the tensor files. Read once, then remembered.
    pub fn digest(&self) -> Result<String, ModelError> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest.clone());
        }
        let mut hasher = blake3::Hasher::new();
        hash_file(&self.config.path, &mut hasher)?;
        for file in &self.files {
            file.hash_into(&mut hasher)?;
        }
        let digest = hasher.finalize().to_hex().to_string();
        Ok(self.digest.get_or_init(|| digest).clone())
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    fn spec(&self, name: &str) -> Option<&TensorSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }

    /// Returns the kind of a stored tensor, if it is one that a model may have.
    fn kind(&self, name: &str, info: &TensorInfo) -> Result<Kind, ModelError> {
        let float = [Kind::BFloat16, Kind::Half, Kind::Float];
        info.kind.filter(|kind| float.contains(kind)).ok_or_else(|| ModelError::Unsupported {
            path: self.place.folder.clone(),
            reason: format!("tensor '{name}' is stored as {}; only BF16, F16 and F32 are supported", info.dtype),
        })
    }

    fn check(&self, expected: &Expected) -> Result<TensorSpec, ModelError> {
        let Expected { name, shape, .. } = expected.clone();
        let Some((file, info)) = self.stored.get(&name) else {
            return Err(ModelError::MissingTensor { path: self.place.folder.clone(), tensor: name, shape });
        };
        if info.shape != shape {
            return Err(ModelError::TensorShape {
                path: self.files[*file].path().to_owned(),
                tensor: name,
                expected: shape,
                found: info.shape.clone(),
            });
        }
        Ok(TensorSpec { kind: self.kind(&name, info)?, name, shape })
    }

    /// Refuses tensors of blocks that the family does not know: a pruned copy would lose them.
    fn refuse_unexpected(&self, expected: &[Expected]) -> Result<(), ModelError> {
        let known: std::collections::BTreeSet<&str> = expected.iter().map(|e| e.name.as_str()).collect();
        let blocks = self.names.blocks();
        let lost = self.stored.iter().find(|(name, _)| {
            name.starts_with(&blocks) && !known.contains(name.as_str()) && !name.ends_with("rotary_emb.inv_freq")
        });
        let Some((name, (file, _))) = lost else { return Ok(()) };
        Err(ModelError::UnexpectedTensor {
            path: self.files[*file].path().to_owned(),
            tensor: name.clone(),
            family: self.config.family.name(),
        })
    }

    /// Refuses a config that ties the head to the embedding while the files hold another head.
    fn refuse_two_heads(&self) -> Result<(), ModelError> {
        let embedding = self.names.embedding();
        let (Some((file, info)), Some((head_file, head))) =
            (self.stored.get(&embedding), self.stored.get(&self.names.head()))
        else {
            return Ok(());
        };
        if !self.config.tied || (file, info) == (head_file, head) {
            return Ok(());
        }
        let same_form = (&info.dtype, &info.shape, &info.order) == (&head.dtype, &head.shape, &head.order);
        if same_form && self.files[*file].bytes(&info.range)? == self.files[*head_file].bytes(&head.range)? {
            return Ok(());
        }
        Err(ModelError::Config {
            path: self.config.path.clone(),
            reason: format!(
                "the head is tied to the embedding, but '{}' differs from '{embedding}'; set tie_word_embeddings to false if the head is its own",
                self.names.head()
            ),
        })
    }

    fn count(&self, expected: &[Expected]) -> Sizes {
        let mut sizes = Sizes::default();
        for (spec, expected) in self.specs.iter().zip(expected) {
            let numbers = spec.shape.iter().product::<i64>() as u64;
            let prunable = if expected.role == Role::Linear { numbers } else { 0 };
            sizes += Sizes { prunable, parameters: numbers, bytes: bytes_of(spec) };
        }
        sizes
    }
}
