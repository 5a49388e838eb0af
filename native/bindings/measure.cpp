// Peaks and the kernels' self-test: what `bitqwen bench` and `bitqwen doctor` ask the machine itself.
#include <nanobind/stl/string.h>

#include "bindings/bindings.h"
#include "measure/peaks.h"
#include "measure/self_test.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitqwen {

void bind_measure(nb::module_& m) {
  using measure::Peaks;
  nb::class_<Peaks>(m, "Peaks", "What this machine can do at most: reading memory, int8 multiply-adds.")
      .def(nb::init<int, int64_t>(), "threads"_a, "bytes"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("threads", &Peaks::threads)
      .def("read_bandwidth", &Peaks::read_bandwidth, nb::call_guard<nb::gil_scoped_release>(),
           "Bytes a second, of one pass over the memory with all threads.")
      .def("int8_rate", &Peaks::int8_rate, nb::call_guard<nb::gil_scoped_release>(),
           "Multiply-adds a second from registers with the live instruction set; 0: it has no such "
           "instruction.");
  m.def(
      "kernel_self_test",
      [](uint64_t seed) {
        std::vector<measure::SelfTestResult> results;
        {
          nb::gil_scoped_release release;
          results = measure::self_test(seed);
        }
        nb::list out;
        for (const auto& r : results) {
          out.append(nb::make_tuple(std::string(isa_name(r.isa)), r.type, r.products, r.wrong));
        }
        return out;
      },
      "seed"_a = 1,
      "[(instruction set, tensor type, products compared with the scalar kernels', wrong ones)]");
}

}  // namespace bitqwen
