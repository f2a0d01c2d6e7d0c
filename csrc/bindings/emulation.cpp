// The emulated module's own switches, for tests.
#include <pybind11/pybind11.h>

#include <string>

#include "core/check.h"
#include "core/emulation/scheduler.h"

namespace py = pybind11;

namespace fastshape {

void bind_emulation(py::module_& m) {
  m.def(
      "set_emulation_schedule",
      [](const std::string& kind, uint64_t seed) {
        if (kind == "ascending") return emulation::set_schedule(emulation::Schedule::ascending);
        if (kind == "descending") return emulation::set_schedule(emulation::Schedule::descending);
        if (kind == "random") return emulation::set_schedule(emulation::Schedule::random, seed);
        FASTSHAPE_CHECK_VALUE(false,
                              "`kind` must be \"ascending\", \"descending\" or \"random\", got \"",
                              kind, "\"");
      },
      py::arg("kind"), py::arg("seed") = 0,
      "Which thread of an emulated kernel runs next, and which block comes first.");
  m.def(
      "set_emulation_device",
      [](int multiprocessors, size_t shared_bytes, int compute_capability) {
        emulation::set_device({multiprocessors, shared_bytes, compute_capability});
      },
      py::arg("multiprocessors") = emulation::Device().multiprocessors,
      py::arg("shared_bytes") = emulation::Device().shared_per_block,
      py::arg("compute_capability") = emulation::Device().compute_capability,
      "What kernels find when they ask for the device: without arguments, the usual one.");
}

}  // namespace fastshape
