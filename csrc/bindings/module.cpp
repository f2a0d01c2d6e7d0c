// The extension module: a table of contents.
#include <pybind11/pybind11.h>

#include "core/check.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace fastshape {

void bind_attention(py::module_& m);
void bind_carving(py::module_& m);
void bind_dual_surface(py::module_& m);
void bind_geometry(py::module_& m);
void bind_isosurface(py::module_& m);
void bind_quantize(py::module_& m);
void bind_raster(py::module_& m);
void bind_sampling(py::module_& m);
void bind_sparse(py::module_& m);
void bind_voxel_corners(py::module_& m);
#if defined(FASTSHAPE_EMULATION)
void bind_emulation(py::module_& m);
#endif

namespace {

void translate_exceptions() {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const NotImplementedError& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    }  // RuntimeError is pybind11's own rule for std::runtime_error
  });
}

void bind_runtime(py::module_& m) {
  m.attr("__version__") = FASTSHAPE_VERSION;
#if defined(FASTSHAPE_HAS_CUDA)
  m.attr("cuda_architectures") = FASTSHAPE_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_architectures") = "";
#endif
#if defined(FASTSHAPE_EMULATION)
  m.attr("emulated") = true;  // CPU tensors go to the CUDA kernels
#else
  m.attr("emulated") = false;
#endif
  m.attr("compiler") = FASTSHAPE_COMPILER;
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("threads"));
  m.def("instruction_set", [] { return instruction_set_name(instruction_set()); });
  m.def("best_instruction_set", [] { return instruction_set_name(best_instruction_set()); });
  m.def(
      "set_instruction_set",
      [](const std::string& name) { set_instruction_set(instruction_set_from_name(name)); },
      py::arg("name"));
}

}  // namespace
}  // namespace fastshape

PYBIND11_MODULE(FASTSHAPE_MODULE, m) {
  m.doc() = "fastshape's kernels. Use fastshape.ops: it checks, allocates and differentiates.";
  fastshape::translate_exceptions();
  fastshape::bind_runtime(m);
  fastshape::bind_attention(m);
  fastshape::bind_carving(m);
  fastshape::bind_dual_surface(m);
  fastshape::bind_geometry(m);
  fastshape::bind_isosurface(m);
  fastshape::bind_quantize(m);
  fastshape::bind_raster(m);
  fastshape::bind_sampling(m);
  fastshape::bind_sparse(m);
  fastshape::bind_voxel_corners(m);
#if defined(FASTSHAPE_EMULATION)
  fastshape::bind_emulation(m);
#endif
}
