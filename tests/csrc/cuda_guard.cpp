// A device guard that does nothing, for PyTorch without CUDA or without a GPU: with it, fake CUDA
// tensors go wherever real ones go, through autograd's engine too.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
const c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
const c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, &guard);
}  // namespace
