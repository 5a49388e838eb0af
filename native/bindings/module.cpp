// The extension module bitqwen._native: one bind_<room>() for each room of the native side.
#include <nanobind/nanobind.h>

#include "bindings/bindings.h"
#include "errors.h"

namespace nb = nanobind;

namespace {

const char* python_class(bitqwen::ErrorKind kind) {
  switch (kind) {
    case bitqwen::ErrorKind::kArgument: return "UsageError";
    case bitqwen::ErrorKind::kFile: return "ModelFileError";
    case bitqwen::ErrorKind::kFormat: return "ModelFileError";
    case bitqwen::ErrorKind::kUnsupported: return "UnsupportedModelError";
    case bitqwen::ErrorKind::kResource: return "ResourceError";
    case bitqwen::ErrorKind::kContext: return "ContextLengthError";
    case bitqwen::ErrorKind::kInterrupted: return "Interrupted";
  }
  return "BitqwenError";
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const bitqwen::Error& error) {
    nb::object type = nb::module_::import_("bitqwen.errors").attr(python_class(error.kind()));
    nb::object value = type(error.what(), nb::arg("hint") = error.hint().c_str());
    PyErr_SetObject(type.ptr(), value.ptr());
  }
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ core of bitqwen.";
  nb::register_exception_translator(translate);
#ifdef BITQWEN_HAS_gguf
  bitqwen::bind_gguf(m);
#endif
#ifdef BITQWEN_HAS_codebook
  bitqwen::bind_codebook(m);
#endif
#ifdef BITQWEN_HAS_quant
  bitqwen::bind_quant(m);
#endif
#ifdef BITQWEN_HAS_engine
  bitqwen::bind_engine(m);
#endif
#ifdef BITQWEN_HAS_sampling
  bitqwen::bind_sampling(m);
#endif
#ifdef BITQWEN_HAS_measure
  bitqwen::bind_measure(m);
#endif
#ifdef BITQWEN_HAS_tuning
  bitqwen::bind_tuning(m);
#endif
}
