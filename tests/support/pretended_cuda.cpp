// A device guard, a generator and hooks for device type CUDA: what a torch built for CPUs lacks.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

using c10::Device, c10::DeviceIndex, c10::Stream;
static const Device gpu(c10::DeviceType::CUDA, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return gpu; }
  Device getDevice() const override { return gpu; }
  Stream getStream(Device) const noexcept override {
    return Stream(Stream::DEFAULT, gpu);
  }
  Stream exchangeStream(Stream) const noexcept override {
    return Stream(Stream::DEFAULT, gpu);
  }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Generator final : at::CPUGeneratorImpl {
  Generator() {
    device_ = gpu;
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  }
};

namespace at {  // where torch looks for a class of this name
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  at::Generator getNewGenerator(DeviceIndex) const override { return make_generator<::Generator>(); }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    static const at::Generator generator = make_generator<::Generator>();
    return generator;
  }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at
