// The Python module fvae._C or fvae._C_cuda: importing it registers the ops; it has nothing else.
#include <Python.h>

// PyTorch's build defines TORCH_EXTENSION_NAME, the module's name without its package.
#define FVAE_TEXT_OF(name) #name
#define FVAE_TEXT(name) FVAE_TEXT_OF(name)
#define FVAE_INIT_OF(name) PyInit_##name
#define FVAE_INIT(name) FVAE_INIT_OF(name)

extern "C" PyObject* FVAE_INIT(TORCH_EXTENSION_NAME)() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, FVAE_TEXT(TORCH_EXTENSION_NAME), nullptr, -1, nullptr, nullptr,
      nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
