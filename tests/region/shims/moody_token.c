/* A PKCS#11 module around SoftHSM whose mood is in the file KEYWARD_TEST_TOKEN_MOOD: "slow" answers after 500 ms,
 * "wrong" answers with other bytes, "gone" is a token that was pulled out; anything else ("fine") is SoftHSM as it is.
 *
 * A function list (PKCS #11 v2.40, section 3.6) is a version of two bytes and then pointers, in the order of the
 * standard; only those below are put in the place of SoftHSM's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ul;
typedef unsigned char byte;
typedef ul (*call)(ul, byte *, ul, byte *, ul *);

struct functions {
    byte version[2];
    void *at[68];
};
enum { GET_FUNCTION_LIST = 3, ENCRYPT = 30, DECRYPT = 34 };
enum { CKR_GENERAL_ERROR = 5, CKR_DEVICE_REMOVED = 0x32 };

static struct functions list;
static call real_encrypt, real_decrypt;

static char mood(void) {
    const char *path = getenv("KEYWARD_TEST_TOKEN_MOOD");
    FILE *file = path ? fopen(path, "r") : NULL;
    int first = file ? fgetc(file) : EOF;
    if (file) fclose(file);
    return first == EOF ? 'n' : (char)first;
}

static ul moody(call real, ul session, byte *in, ul in_bytes, byte *out, ul *out_bytes) {
    char now = mood();
    if (now == 'g') return CKR_DEVICE_REMOVED;
    if (now == 's' && out) usleep(500 * 1000);
    ul result = real(session, in, in_bytes, out, out_bytes);
    if (now == 'w' && out && result == 0 && *out_bytes > 0) out[*out_bytes / 2] ^= 1;
    return result;
}

static ul encrypt(ul session, byte *in, ul in_bytes, byte *out, ul *out_bytes) {
    return moody(real_encrypt, session, in, in_bytes, out, out_bytes);
}

static ul decrypt(ul session, byte *in, ul in_bytes, byte *out, ul *out_bytes) {
    return moody(real_decrypt, session, in, in_bytes, out, out_bytes);
}

ul C_GetFunctionList(struct functions **found) {
    if (!real_encrypt) {
        void *module = dlopen("/usr/lib/softhsm/libsofthsm2.so", RTLD_NOW | RTLD_LOCAL);
        ul (*get)(struct functions **) =
            module ? (ul(*)(struct functions **))dlsym(module, "C_GetFunctionList") : NULL;
        struct functions *real;
        if (!get || get(&real) != 0) return CKR_GENERAL_ERROR;
        list = *real;
        list.at[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
        real_encrypt = (call)list.at[ENCRYPT];
        real_decrypt = (call)list.at[DECRYPT];
        list.at[ENCRYPT] = (void *)encrypt;
        list.at[DECRYPT] = (void *)decrypt;
    }
    *found = &list;
    return 0;
}
