/* Conversions between number types, each rounded once: the same bits on every device, in C99, CUDA C and simulation.

   What they mean is written at the head of codegen/expr.py; codegen/llvm/convert.py is the same for LLVM. float16 and
   bfloat16 are unsigned short in memory. Each section below starts with a line that names its function;
   codegen/c/prelude.py copies the sections that a translation unit needs, with those that they call. No header is
   included: NVRTC has none. */
#ifndef INLINE
#define INLINE static inline
#endif

// function float_bits
INLINE unsigned float_bits(float x) {
    union { float f; unsigned u; } both;
    both.f = x;
    return both.u;
}

// function bits_float
INLINE float bits_float(unsigned x) {
    union { unsigned u; float f; } both;
    both.u = x;
    return both.f;
}

// function double_bits
INLINE unsigned long long double_bits(double x) {
    union { double f; unsigned long long u; } both;
    both.f = x;
    return both.u;
}

// function bits_double
INLINE double bits_double(unsigned long long x) {
    union { unsigned long long u; double f; } both;
    both.u = x;
    return both.f;
}

// function half_to_float
INLINE float half_to_float(unsigned short x) {
    unsigned sign = (x & 0x8000u) << 16, magnitude = x & 0x7FFFu;
    if (magnitude < 0x0400u) return bits_float(sign | float_bits((float)magnitude * 5.9604644775390625e-8f)); /* in units of 2^-24 */
    if (magnitude >= 0x7C00u) return bits_float(sign | 0x7F800000u | (magnitude << 13)); /* infinity and NaN */
    return bits_float(sign | ((magnitude << 13) + 0x38000000u));
}

// function float_to_half
INLINE unsigned short float_to_half(float x) {
    unsigned bits = float_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    unsigned whole, rest, halfway, exponent = magnitude >> 23;
    if (magnitude > 0x7F800000u) return (unsigned short)(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return (unsigned short)(sign | 0x7C00u); /* 65520 and above */
    if (exponent < 102u) return (unsigned short)sign; /* below half of the least subnormal */
    if (exponent < 113u) { /* subnormal: in units of 2^-24 */
        halfway = 1u << (125u - exponent);
        whole = (magnitude & 0x7FFFFFu) | 0x800000u;
        rest = whole & (halfway * 2u - 1u);
        whole >>= 126u - exponent;
        if (rest > halfway || (rest == halfway && (whole & 1u))) whole += 1u;
        return (unsigned short)(sign | whole);
    }
    magnitude -= 0x38000000u;
    magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
    return (unsigned short)(sign | (magnitude >> 13));
}

// function bfloat_to_float
INLINE float bfloat_to_float(unsigned short x) {
    return bits_float((unsigned)x << 16);
}

// function float_to_bfloat
INLINE unsigned short float_to_bfloat(float x) {
    unsigned bits = float_bits(x), upper = bits >> 16;
    if (x != x) return (unsigned short)(upper | 0x40u);
    return (unsigned short)((bits + 0x7FFFu + (upper & 1u)) >> 16);
}

// function double_to_float_odd
/* Toward zero, the last bit set where inexact: a later rounding to fewer bits is then as if done once (Boldo and
   Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008). */
INLINE float double_to_float_odd(double x) {
    float near = (float)x;
    double back = (double)near;
    unsigned bits = float_bits(near);
    if (x != x || back == x) return near;
    if ((double_bits(back) & 0x7FFFFFFFFFFFFFFFull) > (double_bits(x) & 0x7FFFFFFFFFFFFFFFull)) bits -= 1u;
    return bits_float(bits | 1u);
}

// function i64_to_double_odd
/* The bits that do not fit a double are folded into the last one that does. */
INLINE double i64_to_double_odd(long long x) {
    unsigned long long bits = (unsigned long long)x;
    if (bits + (1ull << 52) < (1ull << 53)) return (double)x;
    return (double)(long long)((bits & ~0xFFFull) | ((bits & 0xFFFull) ? 0x800ull : 0ull));
}

// function u64_to_double_odd
INLINE double u64_to_double_odd(unsigned long long x) {
    if (x < (1ull << 53)) return (double)x;
    return (double)((x & ~0xFFFull) | ((x & 0xFFFull) ? 0x800ull : 0ull));
}

// function i64_to_bfloat
INLINE unsigned short i64_to_bfloat(long long x) {
    return float_to_bfloat(double_to_float_odd(i64_to_double_odd(x)));
}

// function u64_to_bfloat
INLINE unsigned short u64_to_bfloat(unsigned long long x) {
    return float_to_bfloat(double_to_float_odd(u64_to_double_odd(x)));
}

// function mulhi_u32
/* The upper half of a product. */
INLINE unsigned mulhi_u32(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}

// function mulhi_u64
INLINE unsigned long long mulhi_u64(unsigned long long a, unsigned long long b) {
    unsigned long long a0 = a & 0xFFFFFFFFull, a1 = a >> 32, b0 = b & 0xFFFFFFFFull, b1 = b >> 32;
    unsigned long long middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (middle & 0xFFFFFFFFull);
    return a1 * b1 + (middle >> 32) + (other >> 32);
}

// function f32_to_i8
/* Float to integer: toward zero, saturating, NaN gives 0. */
INLINE signed char f32_to_i8(float x) {
    if (x != x) return 0;
    if (x >= 128.0f) return 127;
    if (x <= -128.0f) return -128;
    return (signed char)x;
}

// function f32_to_i16
INLINE short f32_to_i16(float x) {
    if (x != x) return 0;
    if (x >= 32768.0f) return 32767;
    if (x <= -32768.0f) return -32768;
    return (short)x;
}

// function f32_to_i32
INLINE int f32_to_i32(float x) {
    if (x != x) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x <= -2147483648.0f) return -2147483647 - 1;
    return (int)x;
}

// function f32_to_i64
INLINE long long f32_to_i64(float x) {
    if (x != x) return 0;
    if (x >= 9223372036854775808.0f) return 9223372036854775807LL;
    if (x <= -9223372036854775808.0f) return -9223372036854775807LL - 1;
    return (long long)x;
}

// function f32_to_u8
INLINE unsigned char f32_to_u8(float x) {
    if (!(x > 0.0f)) return 0;
    if (x >= 256.0f) return 255;
    return (unsigned char)x;
}

// function f32_to_u16
INLINE unsigned short f32_to_u16(float x) {
    if (!(x > 0.0f)) return 0;
    if (x >= 65536.0f) return 65535;
    return (unsigned short)x;
}

// function f32_to_u32
INLINE unsigned f32_to_u32(float x) {
    if (!(x > 0.0f)) return 0;
    if (x >= 4294967296.0f) return 4294967295u;
    return (unsigned)x;
}

// function f32_to_u64
INLINE unsigned long long f32_to_u64(float x) {
    if (!(x > 0.0f)) return 0;
    if (x >= 18446744073709551616.0f) return 18446744073709551615ull;
    return (unsigned long long)x;
}

// function f64_to_i8
INLINE signed char f64_to_i8(double x) {
    if (x != x) return 0;
    if (x >= 128.0) return 127;
    if (x <= -128.0) return -128;
    return (signed char)x;
}

// function f64_to_i16
INLINE short f64_to_i16(double x) {
    if (x != x) return 0;
    if (x >= 32768.0) return 32767;
    if (x <= -32768.0) return -32768;
    return (short)x;
}

// function f64_to_i32
INLINE int f64_to_i32(double x) {
    if (x != x) return 0;
    if (x >= 2147483648.0) return 2147483647;
    if (x <= -2147483648.0) return -2147483647 - 1;
    return (int)x;
}

// function f64_to_i64
INLINE long long f64_to_i64(double x) {
    if (x != x) return 0;
    if (x >= 9223372036854775808.0) return 9223372036854775807LL;
    if (x <= -9223372036854775808.0) return -9223372036854775807LL - 1;
    return (long long)x;
}

// function f64_to_u8
INLINE unsigned char f64_to_u8(double x) {
    if (!(x > 0.0)) return 0;
    if (x >= 256.0) return 255;
    return (unsigned char)x;
}

// function f64_to_u16
INLINE unsigned short f64_to_u16(double x) {
    if (!(x > 0.0)) return 0;
    if (x >= 65536.0) return 65535;
    return (unsigned short)x;
}

// function f64_to_u32
INLINE unsigned f64_to_u32(double x) {
    if (!(x > 0.0)) return 0;
    if (x >= 4294967296.0) return 4294967295u;
    return (unsigned)x;
}

// function f64_to_u64
INLINE unsigned long long f64_to_u64(double x) {
    if (!(x > 0.0)) return 0;
    if (x >= 18446744073709551616.0) return 18446744073709551615ull;
    return (unsigned long long)x;
}

// function add_i32
/* Signed arithmetic that wraps, which C leaves undefined. */
INLINE int add_i32(int a, int b) {
    return (int)((unsigned)a + (unsigned)b);
}

// function sub_i32
INLINE int sub_i32(int a, int b) {
    return (int)((unsigned)a - (unsigned)b);
}

// function mul_i32
INLINE int mul_i32(int a, int b) {
    return (int)((unsigned)a * (unsigned)b);
}

// function neg_i32
INLINE int neg_i32(int a) {
    return (int)(0u - (unsigned)a);
}

// function shl_i32
INLINE int shl_i32(int a, int b) {
    return (int)((unsigned)a << b);
}

// function add_i64
INLINE long long add_i64(long long a, long long b) {
    return (long long)((unsigned long long)a + (unsigned long long)b);
}

// function sub_i64
INLINE long long sub_i64(long long a, long long b) {
    return (long long)((unsigned long long)a - (unsigned long long)b);
}

// function mul_i64
INLINE long long mul_i64(long long a, long long b) {
    return (long long)((unsigned long long)a * (unsigned long long)b);
}

// function neg_i64
INLINE long long neg_i64(long long a) {
    return (long long)(0ull - (unsigned long long)a);
}

// function shl_i64
INLINE long long shl_i64(long long a, long long b) {
    return (long long)((unsigned long long)a << b);
}
