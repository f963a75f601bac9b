"""Every error Tierwise raises on purpose. Each message names the value and the cure.

TierwiseError
├── FamilyError                 a family on disk is not usable
│   ├── FamilyNotFoundError     no family.json in that folder
│   ├── FamilyIncompleteError   a file the manifest names is missing or has the wrong size
│   ├── FamilySchemaError       family.json is not valid, or was written by a newer Tierwise
│   ├── UnsafePathError         a path in the manifest leaves the family's folder
│   ├── DamagedTierError        a tier's bytes do not match their recorded hash
│   └── CalibrationError        outcomes or a calibration are missing, damaged or of another kind
├── ModelError                  a model file is not usable
│   ├── ModelNotFoundError      the base or tier is not there (or cannot be downloaded)
│   ├── DamagedModelError       not a GGUF file, truncated, or corrupted
│   └── UnsupportedModelError   a shape or architecture that Tierwise cannot handle
├── BuildError                  a stage of a build failed; the same command resumes
│   └── DiskFullError           no room left for the next file
├── ConfigError                 a budget, recipe or option that makes no sense
├── CallError                   one call cannot be answered as asked
│   ├── ContextOverflowError    prompt plus reply is longer than the context
│   ├── ToolSchemaError         a tool or response schema that cannot be compiled
│   ├── UnsupportedContentError a message part (image, audio) that a text tier cannot read
│   └── CallTimeoutError        the call's deadline passed
├── ResourceError               the machine cannot grant what was asked
│   ├── OutOfMemoryError        a tier does not fit in what is available now
│   └── NoFeasibleTierError     no tier fits the budget; lists what each would need
├── EngineError                 a tier failed while it ran
│   ├── CacheFullError          the KV cache has too few free cells for a batch
│   ├── EngineBusyError         too many calls wait for the tier already
│   ├── RemoteError             a remote tier cannot be reached, or breaks the protocol
│   │   ├── ThrottledError      it has too many requests; later it may answer
│   │   └── RemoteReplyError    it works, but refuses this call or writes what cannot be read
│   └── EngineClosedError       the engine was closed while the call waited
└── MissingExtraError           an optional package is needed; names the extra
"""


class TierwiseError(Exception):
    """Base of every error that Tierwise raises on purpose."""


class FamilyError(TierwiseError):
    """A family on disk is not usable."""


class FamilyNotFoundError(FamilyError):
    """There is no ``family.json`` in the folder given."""


class FamilyIncompleteError(FamilyError):
    """A file that the manifest names is missing or has the wrong size."""


class FamilySchemaError(FamilyError):
    """``family.json`` is not valid, or was written by a newer Tierwise."""


class UnsafePathError(FamilyError):
    """A path in the manifest leaves the family's folder."""


class DamagedTierError(FamilyError):
    """A tier's bytes do not match the hash recorded for them."""


class CalibrationError(FamilyError):
    """Outcomes or a calibration are missing, damaged, or of another kind; calibrate again."""


class ModelError(TierwiseError):
    """A model file is not usable."""


class ModelNotFoundError(ModelError):
    """The base or tier is not there, or cannot be downloaded."""


class DamagedModelError(ModelError):
    """Not a GGUF file, or one that is truncated or corrupted."""


class UnsupportedModelError(ModelError):
    """A shape or architecture that Tierwise (or this llama.cpp) cannot handle."""


class BuildError(TierwiseError):
    """A stage of a build failed. What was finished is kept; the same command resumes."""


class DiskFullError(BuildError):
    """There is no room left for the next file of a build."""


class ConfigError(TierwiseError, ValueError):
    """A budget, recipe or option that makes no sense."""


class CallError(TierwiseError):
    """One call cannot be answered as asked."""


class ContextOverflowError(CallError):
    """Prompt plus reply is longer than the context of the tier."""


class ToolSchemaError(CallError, ValueError):
    """A tool or response schema that cannot be compiled to a grammar."""


class UnsupportedContentError(CallError, ValueError):
    """A message part (image, audio, file) that a text tier cannot read."""


class CallTimeoutError(CallError, TimeoutError):
    """The call's deadline passed before its reply was complete."""


class ResourceError(TierwiseError):
    """The machine cannot grant what was asked."""


class OutOfMemoryError(ResourceError):
    """A tier does not fit in the memory that is available now."""


class NoFeasibleTierError(ResourceError):
    """No tier fits the budget. The message lists what each would need."""


class EngineError(TierwiseError):
    """A tier failed while it ran, mostly in llama.cpp."""


class CacheFullError(EngineError):
    """The KV cache has too few free cells for a batch. Nothing was decoded."""


class EngineBusyError(EngineError):
    """Too many calls wait for the tier already; try again when some have ended."""


class RemoteError(EngineError):
    """A remote tier cannot be reached, or does not keep to the protocol; others may answer."""

    retry_s = 0.0
    """Seconds for which the server asked to be left alone; 0 if it did not."""


class ThrottledError(RemoteError):
    """The server has too many requests; later it may answer."""


class RemoteReplyError(RemoteError):
    """The server works, but refuses this call, or wrote a reply that cannot be read."""


class EngineClosedError(EngineError):
    """The engine was closed while the call waited or ran."""


class MissingExtraError(TierwiseError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""
