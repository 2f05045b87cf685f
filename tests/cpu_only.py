"""Tests of the runtime that are about the CPU, and so are skipped under `--device cuda`: name -> why."""

_TEXT = "it compares texts with types, which name the device elsewhere"
_LATE = "an index out of range is raised at once; tests/gpu has it for devices"
_SHARED = "memory is shared with NumPy"
_HERE = "it looks at what only the CPU has"

CPU_ONLY: dict[str, str] = {
    f"tests/runtime/{name}": why
    for why, names in {
        _TEXT: (
            "test_autograd.py::test_errors_of_backward",
            "test_bad_input.py::test_tangent_of_another_shape",
            "test_bad_input.py::test_axis_out_of_range[take(f32[2, 3], i64[1])]",
            "test_dispatch.py::test_abstract_tensors",
            "test_errors.py::test_own_faults_say_so_and_keep_the_cause",
            "test_indexing.py::test_refused",
            "test_tensor.py::test_repr",
        ),
        _LATE: (
            "test_compile.py::test_index_errors_at_run_time",
            "test_compile_failures.py::test_a_failing_step_changes_nothing",
            "test_compile_failures.py::test_a_failing_first_call_leaves_no_trace_in_python_state",
            "test_compile_failures.py::test_a_failure_where_python_looks_at_a_value_changes_nothing",
            "test_errors.py::test_messages[--take(f32[2], i64[1]): ]",
            "test_errors.py::test_the_users_line_is_named[--take(f32[2], i64[1]): ]",
            "test_tensor.py::test_mean_var_std",
        ),
        _SHARED: (
            "test_compile.py::test_numpy_inside_runs_eagerly",
            "test_guards.py::test_hooks_of_parameters_are_called",
            "test_interop.py::test_changes_of_a_shared_array_are_seen",
            "test_interop.py::test_numpy_gives_a_read_only_view",
            "test_interop.py::test_dlpack_to_and_from_numpy",
            "test_interop.py::test_dlpack_keeps_memory_alive",
            "test_interop.py::test_dlpack_of_bfloat16_is_refused",
        ),
        _HERE: (
            "test_bad_input.py::test_a_fault_of_the_compiler_is_told_as_such",
            "test_discovery.py::test_cuda_is_not_there",
            "test_dispatch.py::test_specs_are_interned",
            "test_dispatch.py::test_a_changing_number_makes_no_new_entry",
            "test_dispatch.py::test_interpreting_back_end",
            "test_docstrings.py::test_examples[graphc.runtime.device]",
            "test_random.py::test_seeds",
            "test_tensor.py::test_torch_names",
            "test_tensor.py::test_devices",
            "test_tensor.py::test_memory_statistics",
            "test_tensor.py::test_out_of_memory_names_the_sizes",
        ),
    }.items()
    for name in names
}
