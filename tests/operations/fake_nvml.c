/* Stands in for libnvidia-ml.so.1, so that a machine without a GPU exports GPU
 * metrics: two devices whose energy grows with each reading. The signatures are
 * NVML's as worker/agent/gpu_inventory.cc uses them. */
#include <stdint.h>
#include <stdio.h>

struct memory { unsigned long long total, free, used; };
struct utilization { unsigned int gpu, memory; };

static unsigned long long energy_mj = 1000;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void** device) {
  *device = (void*)(uintptr_t)(index + 1);
  return 0;
}
int nvmlDeviceGetUUID(void* device, char* text, unsigned int size) {
  snprintf(text, size, "GPU-%u", (unsigned int)(uintptr_t)device);
  return 0;
}
int nvmlDeviceGetName(void* device, char* text, unsigned int size) {
  (void)device;
  snprintf(text, size, "Imagined 80GB");
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* device, struct memory* memory) {
  (void)device;
  memory->total = 80ull << 30;
  memory->used = 3ull << 30;
  memory->free = memory->total - memory->used;
  return 0;
}
int nvmlDeviceGetUtilizationRates(void* device, struct utilization* use) {
  (void)device;
  use->gpu = 40;
  use->memory = 10;
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
  (void)device;
  *millijoules = energy_mj += 150000;
  return 0;
}
int nvmlDeviceGetTemperature(void* device, int sensor, unsigned int* celsius) {
  (void)device;
  (void)sensor;
  *celsius = 55;
  return 0;
}
