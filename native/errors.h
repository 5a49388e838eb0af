// The native side's one exception type. The bindings turn each kind into the class of the same
// meaning in bitqwen/errors.py.
#pragma once

#include <stdexcept>
#include <string>

namespace bitqwen {

enum class ErrorKind {
  kArgument,     // a caller's value out of range
  kFile,         // cannot open, read, map; cut off; changed while mapped
  kFormat,       // the bytes are not what the format says
  kUnsupported,  // well-formed, but an architecture or type that this build does not run
  kResource,     // too little memory
  kContext,      // more positions than the context has
  kInterrupted,  // the caller asked to stop
};

/// `message` says what was given and what is allowed; `hint` says what to do next (may be empty).
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string hint = "")
      : std::runtime_error(message), kind_(kind), hint_(std::move(hint)) {}
  ErrorKind kind() const { return kind_; }
  const std::string& hint() const { return hint_; }

 private:
  ErrorKind kind_;
  std::string hint_;
};

}  // namespace bitqwen
