/* Two cards behind the part of NVML's C interface that the inventory asks; `stand_in_set` breaks them. */
#include <stdio.h>
#include <string.h>

struct event { void *device; unsigned long long type, data; unsigned int gpu, compute; };
static struct { int ecc, xid, pending, lost, busy, power, energy, memory; } cards[2] = {{.energy = -1}, {.energy = -1}};

static long card_of(void *handle) { return (long)handle - 1; }
static int gone(void *handle) { return cards[card_of(handle)].lost ? 15 : 0; } /* NVML_ERROR_GPU_IS_LOST */

void stand_in_set(int card, const char *name, int value) {
    if (!strcmp(name, "ecc")) cards[card].ecc = value;
    if (!strcmp(name, "xid")) cards[card].xid = value;
    if (!strcmp(name, "pending")) cards[card].pending = value;
    if (!strcmp(name, "lost")) cards[card].lost = value;
    if (!strcmp(name, "busy")) cards[card].busy = value;
    if (!strcmp(name, "power")) cards[card].power = value;
    if (!strcmp(name, "energy")) cards[card].energy = value;
    if (!strcmp(name, "memory")) cards[card].memory = value;
}
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) { *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetMinorNumber(void *handle, unsigned int *minor) { *minor = card_of(handle) + 3; return gone(handle); }
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
    snprintf(name, length, "NVIDIA A100-SXM4-80GB");
    return gone(handle);
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%ld", card_of(handle));
    return gone(handle);
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = *failed = 0;
    *pending = cards[card_of(handle)].pending;
    return gone(handle);
}
int nvmlDeviceGetRetiredPagesPendingStatus(void *handle, int *pending) { (void)handle; (void)pending; return 3; } /* not supported */
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int span, unsigned long long *count) {
    (void)kind; (void)span;
    *count = cards[card_of(handle)].ecc;
    return gone(handle);
}
int nvmlEventSetCreate(void **set) { *set = (void *)1; return 0; }
int nvmlDeviceRegisterEvents(void *handle, unsigned long long types, void *set) { (void)types; (void)set; return gone(handle); }
int nvmlEventSetWait_v2(void *set, struct event *event, unsigned int timeout_ms) {
    (void)set; (void)timeout_ms;
    for (long card = 0; card < 2; card++) {
        if (!cards[card].xid) continue;
        event->device = (void *)(card + 1);
        event->data = cards[card].xid;
        cards[card].xid = 0;
        return 0;
    }
    return 10; /* NVML_ERROR_TIMEOUT */
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned int *rates) { /* nvmlUtilization_t: gpu, memory */
    rates[0] = cards[card_of(handle)].busy;
    rates[1] = 0;
    return gone(handle);
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power_mw) { *power_mw = cards[card_of(handle)].power; return gone(handle); }
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy_mj) {
    *energy_mj = cards[card_of(handle)].energy;
    return cards[card_of(handle)].energy < 0 ? 3 : gone(handle); /* not supported */
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *info) { /* nvmlMemory_t: total, free, used */
    info[0] = 1 << 30;
    info[2] = cards[card_of(handle)].memory;
    info[1] = info[0] - info[2];
    return gone(handle);
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned int *celsius) {
    (void)sensor;
    *celsius = 61;
    return gone(handle);
}
