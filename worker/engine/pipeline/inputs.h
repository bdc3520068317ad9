#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "worker/engine/model/checkpoint.h"
#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/source_watch.h"

namespace quantry::engine {

// Everything a job reads, opened and checked before any work is done.
struct Inputs {
  std::shared_ptr<const Checkpoint> checkpoint;
  // The model the blocks are taken from: `checkpoint`, or its rotated twin.
  std::shared_ptr<const Checkpoint> source;
  at::Tensor calibration;         // int64 [windows, length]; undefined when there is none
  at::Tensor evaluation;          // the same
  at::Tensor corpus;              // the same, of preprocessing
  std::vector<HashedFile> files;  // model, calibration and evaluation files with hashes
  SourceWatch watch;              // of the model's
};

// Opens and checks the model, tokenizes both texts, hashes every file read.
// Throws UserError naming what does not fit.
Inputs OpenInputs(const Job& job, const OnBytes& on_bytes = {});

// The rotated twin of `inputs.checkpoint` (job.rotation) in `dir`, with its
// tokenizer and the like; written anew unless a whole, unharmed one of the same
// model, seed and engine version lies there.
std::shared_ptr<const Checkpoint> OpenRotated(const Job& job, const Inputs& inputs,
                                              const std::string& dir, const OnBytes& on_bytes = {});

// What of the machine's instruction set the job's numbers depend on; where it
// may have bfloat16 products, also whether they are made in that type
// (MultipliesBfloat16).
std::string Instructions(const Job& job, bool multiplies_bfloat16);

// SHA-256 over all that decides the bytes of a quantized block: inputs,
// method, calibration, seed, versions, thread count, device type,
// Instructions.
std::string Fingerprint(const Job& job, const Inputs& inputs, const at::Device& device);

// Throws UserError UNSUPPORTED_ARCHITECTURE for a model of which methods and outputs know
// nothing: one whose inputs are rotated while it runs.
void CheckSource(const Checkpoint& checkpoint);

// Reads a text and throws as OpenInputs would about it. The first text of words loads the
// job's tokenizer into `tokenizer`.
void CheckWindows(const Job& job, const TextJob& text, const Checkpoint& checkpoint,
                  std::shared_ptr<const Tokenizer>& tokenizer);

// Throws UserError INVALID_SPEC when an output cannot hold the model's shapes,
// and as CheckModelFiles does.
void CheckOutputs(const Job& job, const Checkpoint& checkpoint);

// Storage dtype of a model's scales: bf16 where its linears are stored so or
// config.json says so, whatever they are stored in (trainers leave fp32 weights
// beside "bfloat16", and readers make their scales of that type); else fp16.
at::ScalarType ScaleDtypeOf(const Checkpoint& checkpoint);

// Storage dtypes of a block's dense tensors, key below the block.
std::map<std::string, at::ScalarType> DenseDtypes(const Checkpoint& checkpoint, int block);

}  // namespace quantry::engine
