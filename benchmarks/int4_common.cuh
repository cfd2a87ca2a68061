// What the kernels of one decoded token share (Hopper and later). They are a chain, each launched to begin before the
// one before it ends: what needs nothing of that (weights, the cache of earlier tokens) it sends for, then it `await`s.
//
// The order stays that of the launches. `await` returns when the kernel before has ended and what it wrote is seen;
// that one had awaited the kernel before it, so everything earlier has ended too. Nothing is written before `await`: no
// kernel writes what an earlier one still reads, also where the allocator gave both the same memory. A token's first
// kernel follows an ordinary one (the embedding), which began after all of the token before: its place and the cache
// can be read before `await`.

// Lets the next kernel begin once every block is here.
__device__ void release() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ void await() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ unsigned int shared_address(const void* of) { return __cvta_generic_to_shared(of); }

__device__ void open(unsigned long long* barrier) {  // by the thread that expects; others wait after __syncthreads
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Bytes that are copied to shared memory: the barrier's next phase ends when they are there.
__device__ void expect(unsigned long long* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Sends for bytes, a multiple of 16 as are both addresses.
__device__ void copy(void* to, const void* from, int bytes, unsigned long long* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

__device__ void arrived(unsigned long long* barrier, int phase) {
    for (unsigned int done = 0; !done;) {
        asm volatile(
            "{.reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done;}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(phase & 1)
            : "memory");
    }
}

__device__ float lower(unsigned int bits) { return __uint_as_float(bits << 16); }

__device__ float upper(unsigned int bits) { return __uint_as_float(bits & 0xffff0000u); }

__device__ unsigned int pair(float low, float high) {  // of bfloat16, each rounded to the nearest, ties to even
    unsigned int found;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
    return found;
}

template <int FIRST, int LAST>
__device__ float summed(float value) {  // over lanes whose numbers differ in the bits from FIRST to below LAST
#pragma unroll
    for (int apart = FIRST; apart < LAST; apart *= 2) value += __shfl_xor_sync(~0u, value, apart);
    return value;
}
