/* The C interface of the dexport runtime: opens a bundle, makes pictures and videos from it.
 *
 * Errors. A function that can fail returns a dexport_status; dexport_error() gives the text of the last failure on the calling
 * thread, one line that says where, what was expected, what came, what to do. No exception leaves a function.
 *
 * Threads. A handle serves one run at a time: a second one that starts meanwhile returns DEXPORT_BUSY at once and changes
 * nothing. dexport_cancel may be called from any thread, also from a callback or a signal handler. Queries may be called from any thread at any
 * time between dexport_open and dexport_close. Callbacks come on the thread that called. Different handles share nothing.
 *
 * Growth. A struct that begins with `struct_size` may grow at its end: set it to sizeof the struct and zero the rest (in C
 * `dexport_request request = {sizeof request};`); zero always means the default. Text is UTF-8. Text and numbers that a function
 * hands out belong to the handle or result they come from. */
#ifndef DEXPORT_DEXPORT_H
#define DEXPORT_DEXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(DEXPORT_BUILDING)
#define DEXPORT_API __declspec(dllexport)
#else
#define DEXPORT_API __declspec(dllimport)
#endif
#else
#define DEXPORT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dexport_status {
    DEXPORT_OK = 0,
    DEXPORT_FAILURE = 1,    /* the request was legal and something broke: a disk, a compiler, NaN in a result, out of memory */
    DEXPORT_USER_ERROR = 2, /* the request cannot be met as it stands: a bad bundle, a size it lacks, a wrong argument */
    DEXPORT_CANCELLED = 3,  /* dexport_cancel was called, or a callback asked to stop */
    DEXPORT_BUSY = 4        /* another run of the same handle has not ended */
} dexport_status;

typedef enum dexport_dtype {
    DEXPORT_BOOL = 0,
    DEXPORT_INT8 = 1,
    DEXPORT_UINT8 = 2,
    DEXPORT_INT16 = 3,
    DEXPORT_UINT16 = 4,
    DEXPORT_INT32 = 5,
    DEXPORT_UINT32 = 6,
    DEXPORT_INT64 = 7,
    DEXPORT_UINT64 = 8,
    DEXPORT_FLOAT16 = 9,
    DEXPORT_FLOAT32 = 10,
    DEXPORT_FLOAT64 = 11
} dexport_dtype;

enum { DEXPORT_MAX_AXES = 8 };

/* Numbers in row-major order. This struct never changes. */
typedef struct dexport_tensor {
    const char* name; /* of the buffer; may be null where the place says it */
    dexport_dtype dtype;
    int32_t axes;
    int64_t shape[DEXPORT_MAX_AXES];
    const void* data;
} dexport_tensor;

typedef struct dexport_pipeline dexport_pipeline;
typedef struct dexport_result dexport_result;

/* "0.1.0". */
DEXPORT_API const char* dexport_version(void);

/* The text of the last failure on this thread, "" if there was none. Valid until the next call on this thread. */
DEXPORT_API const char* dexport_error(void);

/* The largest resident set of this process so far, in bytes; 0 where the system does not say. */
DEXPORT_API uint64_t dexport_peak_memory(void);

/* ---- Opening ---- */

typedef struct dexport_open_options {
    size_t struct_size;
    int32_t only_sizes;         /* 1: compare the sizes of files only, not their sha256, which takes about 1 s per GB */
    int32_t release_components; /* 1: free each component after its last use in a run, for small devices; they load again at the next */
    /* Called while files are compared: bytes done, bytes in all, the file. */
    void (*on_progress)(void* user, uint64_t done, uint64_t total, const char* file);
    void* user;
    int32_t trust_code; /* 1: run machine code (TensorRT engines) that was not built on this machine */
} dexport_open_options;

/* Opens a bundle, a folder or a .dxb: reads its manifest and compares its files with it. Programs, tokenizers and components are
 * read when they are first needed, and refused then if something is wrong with them. `options` may be null. */
DEXPORT_API dexport_status dexport_open(const char* path, const dexport_open_options* options, dexport_pipeline** pipeline);

/* Frees a handle; null is allowed. Not while a run goes on. Results that it made stay valid. */
DEXPORT_API void dexport_close(dexport_pipeline* pipeline);

/* ---- What a bundle can do ---- */

typedef struct dexport_info {
    size_t struct_size;
    const char* written_by; /* the version of dexport that wrote it */
    const char* model;
    const char* target;
    const char* precision;     /* "fp32", "fp16" or "bf16" */
    const char* guidance_kind; /* "classifier-free" (off at a scale of at most 1), "embedded" or "none" */
    double guidance_default;
    int64_t frames_per_second; /* 0: not a video model */
    size_t components;         /* how many: see dexport_component */
    size_t sizes;              /* see dexport_size; the first is the default */
    size_t programs;           /* see dexport_program_at; the steps of the first are the default */
    size_t texts;              /* see dexport_text_at; 0: the model takes class labels or nothing */
} dexport_info;

typedef struct dexport_program_info {
    size_t struct_size;
    int64_t steps;
    int64_t height; /* pixels */
    int64_t width;
    int32_t guided; /* 1: serves requests whose guidance is on */
    size_t inputs;  /* how many buffers a request fills: see dexport_input */
} dexport_program_info;

typedef struct dexport_text_info {
    size_t struct_size;
    const char* name;
    int64_t length;         /* most tokens of a prompt */
    const char* ids_input;  /* the input that token ids go to */
    const char* mask_input; /* the input that says which of them stand for text; null if there is none */
} dexport_text_info;

/* An input of a program: what prompts and labels are turned into, or what the caller gives in dexport_request.buffers. */
typedef struct dexport_input_info {
    size_t struct_size;
    const char* name;
    dexport_dtype dtype;
    int32_t axes;
    int64_t shape[DEXPORT_MAX_AXES]; /* for one picture */
    int32_t per_picture;             /* 1: axis 0 is multiplied by the number of pictures */
} dexport_input_info;

DEXPORT_API dexport_status dexport_get_info(const dexport_pipeline* pipeline, dexport_info* info);
DEXPORT_API dexport_status dexport_component(const dexport_pipeline* pipeline, size_t index, const char** name);
DEXPORT_API dexport_status dexport_size(const dexport_pipeline* pipeline, size_t index, int64_t* height, int64_t* width);
DEXPORT_API dexport_status dexport_text_at(const dexport_pipeline* pipeline, size_t index, dexport_text_info* info);
DEXPORT_API dexport_status dexport_program_at(dexport_pipeline* pipeline, size_t index, dexport_program_info* info);
DEXPORT_API dexport_status dexport_input(dexport_pipeline* pipeline, size_t program, size_t index, dexport_input_info* info);

/* ---- Running ---- */

typedef enum dexport_noise {
    DEXPORT_NOISE_TORCH = 0, /* a seed gives the picture that it gives in diffusers */
    DEXPORT_NOISE_PHILOX = 1
} dexport_noise;

typedef struct dexport_request {
    size_t struct_size;
    const char* const* prompts; /* one or more; null for none */
    size_t prompt_count;
    const char* const* negative_prompts; /* one for all, or one per prompt */
    size_t negative_prompt_count;
    const int64_t* class_labels; /* for models that take them instead of prompts */
    size_t class_label_count;
    size_t pictures; /* per prompt or label; 0 is 1 */
    int64_t steps;   /* 0: the default of the bundle; so are height and width, in pixels */
    int64_t height;
    int64_t width;
    const double* guidance; /* null: the default of the bundle */
    const uint64_t* seeds;  /* null: one from the system; one: one stream for all pictures; else one per picture */
    size_t seed_count;
    dexport_noise noise;
    const dexport_tensor* latents; /* the initial noise itself, float32 [pictures, ...], instead of seeds; null for none */
    /* Inputs that the caller has filled, such as token ids (see dexport_input), or what is computed of them before the first step,
     * such as "prompt_embeds", which then is not computed; rows of the unconditional half go first. */
    const dexport_tensor* buffers;
    size_t buffer_count;
    int32_t want_latents; /* 1: keep the latents of the last step: see dexport_result_latents */
    void* user;           /* handed to the callbacks, each of which may be null */
    /* After each model call: index, how many there are, the timestep, and the latents, float and valid during the call. Not 0: stop. */
    int32_t (*on_step)(void* user, size_t step, size_t steps, double timestep, const dexport_tensor* latents);
    /* Before each instruction of the sampling program, as a line of text. */
    void (*on_trace)(void* user, const char* line);
    /* What should be known and stops nothing, such as a prompt that is too long. */
    void (*on_warning)(void* user, const char* line);
} dexport_request;

/* Makes pictures. `result` is to be freed with dexport_result_free; it is null unless DEXPORT_OK is returned. */
DEXPORT_API dexport_status dexport_run(dexport_pipeline* pipeline, const dexport_request* request, dexport_result** result);

/* Makes the current run of the handle stop before its next instruction. No cancel is lost: where no run goes on, the next one of
 * the handle stops before its first instruction. A run whose last instruction has begun ends as if none had come. Null is allowed. */
DEXPORT_API void dexport_cancel(dexport_pipeline* pipeline);

/* uint8 [pictures, frames, height, width, 3], RGB; one frame unless the model makes videos. */
DEXPORT_API dexport_status dexport_result_pictures(const dexport_result* result, dexport_tensor* pictures);

/* The latents of the last step, if the request wanted them. */
DEXPORT_API dexport_status dexport_result_latents(const dexport_result* result, dexport_tensor* latents);

/* Wall seconds of a component in the run, its loading included, or of the whole run where `component` is null. 0: it did not run. */
DEXPORT_API double dexport_result_seconds(const dexport_result* result, const char* component);

/* Name of the sampling program that ran. */
DEXPORT_API const char* dexport_result_program(const dexport_result* result);

/* Frees a result; null is allowed. */
DEXPORT_API void dexport_result_free(dexport_result* result);

/* ---- Saving ---- */

/* DEXPORT_OK if `path` is a .png or .npy in a folder that exists: a check before the work, of what can be known without writing. */
DEXPORT_API dexport_status dexport_check_output(const char* path, int32_t video);

/* Writes uint8 [count, height, width, 3] or, for videos, [count, frames, height, width, 3]; each file completely or not at all.
 *
 * OUT.png takes one picture. Several go to OUT-0.png, OUT-1.png and so on, and so do the frames of a video: there is no video
 * encoder here. Numbers have as many digits as the last one. OUT.npy takes all of them. `on_file` may be null; it is called with
 * every file once all are written. */
DEXPORT_API dexport_status dexport_save(const dexport_tensor* pictures, const char* path, void (*on_file)(void* user, const char* file),
                                        void* user);

#ifdef __cplusplus
}
#endif

#endif
