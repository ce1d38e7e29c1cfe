"""The fault matrix: each fault, what must happen, the tests that prove it, and the detectors that they need.

Rows 1 to 29 are the matrix, A to I the nine faults that were found from outside. `python -m tests.faults` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINT = "training/test_checkpoint.py::"
DAMAGE = f"{CHECKPOINT}test_damage_to_any_file_is_found_and_an_older_step_taken"
BY_DIGEST = f"{CHECKPOINT}test_an_array_that_is_not_what_was_saved_is_found_by_its_digest_alone"
ALL_BAD = f"{CHECKPOINT}test_with_all_of_them_damaged_each_reason_is_given"
FAILED_SAVE = f"{CHECKPOINT}test_a_save_that_fails_is_said_and_training_goes_on"
IN_A_STREAK = f"{CHECKPOINT}test_steps_within_a_streak_do_not_replace_the_last_good_one"
SURPLUS = f"{CHECKPOINT}test_surplus_steps_of_a_killed_removal_go"
KILLED_SAVE = "training/test_killed_saves.py::test_the_newest_whole_step_is_there_and_what_is_half_goes"
LOST_STEPS = "training/test_run.py::test_steps_that_are_gone_are_never_a_fresh_start"
KILLED_RUN = "training/test_run.py::test_killed_and_run_again_is_bitwise_the_same"
STOPPED_RUN = "training/test_run.py::test_sigterm_saves_at_once_and_ends_with_75"
STOPPED_LOOP = "training/test_loop.py::test_sigterm_is_granted_after_the_step_it_came_in"
MANY = "parallel/test_processes.py::"
CUT_JOB = f"{MANY}test_a_run_cut_over_and_over_is_the_same_run"
SAME_RUN = "training/test_same_run.py::"
SOURCE = "models/weights/test_source.py::"
LOADING = "models/weights/test_loading.py::"
ORBAX = "models/weights/test_orbax.py::"
NOT_FINITE = f"{ORBAX}test_weights_that_are_not_finite_are_not_written"
TRACKING = "training/test_tracking.py::"
WORKDIRS = "training/test_workdirs.py::"
READERS = "faults/test_readers.py::"
OLDER_STEP = "test_export.py::test_an_intact_older_step_takes_the_place_of_a_damaged_one"
INFINITE_UPDATE = "training/test_step.py::test_an_update_that_makes_parameters_infinite_is_skipped"
REFUSED_JSON = "test_json_text.py::test_what_is_refused"


@dataclass(frozen=True)
class Detector:
    """A function of the package ("module:attribute"), what stands in its place (disabled.py), which tests then fail."""

    target: str
    replacement: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One fault. `tests` are further ones, beside those of its detectors."""

    name: str
    fault: str
    required: str
    detectors: tuple[Detector, ...]
    tests: tuple[str, ...] = ()

    @property
    def all_tests(self) -> tuple[str, ...]:
        """Every test of the row, once."""
        return tuple(dict.fromkeys([test for detector in self.detectors for test in detector.tests] + [*self.tests]))

    @property
    def line(self) -> str:
        """Its line of the table in docs/reliability.md."""
        tests = ", ".join(f"`tests/{one.tests[0].partition('[')[0].replace('::', ': ')}`" for one in self.detectors)
        detectors = ", ".join(f"`{_short(one.target)}`" for one in self.detectors)
        return f"| {self.name} | {self.fault} | {self.required} | {tests} | {detectors} |"


def _short(target: str) -> str:
    """ "steps.check_files" of "empathax.models.weights.steps:check_files"; of a script its name."""
    module, _, attribute = target.partition(":")
    return "supervise.sh" if attribute == "SUPERVISE" else f"{module.rpartition('.')[2]}.{attribute}"


ROWS = (
    Row(
        "1",
        "SIGKILL before, in and after a save",
        "the same command goes on from the last commit; the parameters end bitwise equal",
        (
            Detector(
                "empathax.data.loader:Loader.iterate",
                "from the start",
                ("data/test_loader.py::test_reading_goes_on_from_any_step_also_in_epoch_two",),
            ),
            Detector("empathax.training.checkpoint:_clear", "nothing", (KILLED_SAVE,)),
        ),
        (f"{KILLED_RUN}[sft-7]", f"{KILLED_RUN}[dpo-7]"),
    ),
    Row(
        "2",
        "SIGKILL between data and commit, or while an old step is removed",
        "what is not committed is removed; the newest whole step is used",
        (
            Detector(
                "empathax.training.checkpoint:_clear",
                "nothing",
                (f"{CHECKPOINT}test_a_step_being_replaced_comes_back_after_a_kill", KILLED_SAVE),
            ),
        ),
        (SURPLUS, f"{CHECKPOINT}test_a_step_without_all_items_does_not_count"),
    ),
    Row(
        "3",
        "disk full in a background save",
        "said within a step under its own number, not counted, training goes on; code 5 if the last save failed",
        (Detector("empathax.training.checkpoint:StageCheckpoints._fail", "nothing", (FAILED_SAVE,)),),
    ),
    Row(
        "4",
        "a bit flipped; a file cut, emptied or gone",
        "the error names step and file or leaf; the next older verified step is used",
        (
            Detector(
                "empathax.models.weights.steps:check_files",
                "nothing",
                (f"{DAMAGE}[one bit]", f"{DAMAGE}[truncated]", f"{DAMAGE}[deleted]"),
            ),
            Detector("empathax.models.weights.steps:Step._compare", "nothing", (BY_DIGEST,)),
        ),
        (DAMAGE,),
    ),
    Row(
        "5",
        "every checkpoint damaged, or all gone",
        "code 5 with each reason; never a fresh start in a directory that was trained in",
        (
            Detector("empathax.models.weights.steps:check_files", "nothing", (ALL_BAD,)),
            Detector("empathax.training.workdirs:saved_step", "nothing", (f"{LOST_STEPS}[checkpoints]",)),
        ),
        (LOST_STEPS,),
    ),
    Row(
        "6",
        "resume on another mesh or number of processes",
        "digests are equal, the next ten losses within 1e-5, the same rows",
        (
            Detector(
                "empathax.models.weights.digests:_weights",
                "all ones",
                ("training/test_resume_on_meshes.py::test_a_digest_sees_shards_that_changed_places",),
            ),
        ),
        ("training/test_resume_on_meshes.py::test_the_next_ten_losses_are_the_same", CUT_JOB),
    ),
    Row(
        "7",
        "another model, dtype, optimizer, schedule or reference than the checkpoint's",
        "code 5 naming setting or leaf before arrays are read; no dtype is cast",
        (
            Detector(
                "empathax.models.weights.steps:check_layout",
                "nothing",
                (f"{CHECKPOINT}test_another_model_or_optimizer_is_refused_by_leaf",),
            ),
            Detector(
                "empathax.training.checkpoint:check_same_run", "nothing", (f"{SAME_RUN}test_what_a_stage_depends_on",)
            ),
        ),
    ),
    Row(
        "8",
        "two runs in one directory; a directory that cannot be written",
        "the second ends with code 5; code 2 before anything compiles",
        (
            Detector(
                "empathax.training.workdirs:_lock",
                "nothing",
                (f"{WORKDIRS}test_a_second_process_is_refused_and_empties_nothing",),
            ),
        ),
        (
            f"{WORKDIRS}test_a_lock_that_nobody_touches_is_taken_over",
            f"{WORKDIRS}test_a_directory_that_cannot_be_written_is_a_setting_to_change",
        ),
    ),
    Row(
        "9",
        "SIGTERM while training, evaluating, compiling or waiting for data",
        "a checkpoint at the current step, code 75, bitwise resume; a second one ends at once",
        (
            Detector("empathax.parallel.stopping:StopVote.vote", "false", (STOPPED_LOOP,)),
            Detector(
                "empathax.sigterm:is_requested", "false", ("test_sigterm.py::test_a_stop_is_noted_while_it_is_held",)
            ),
        ),
        (STOPPED_RUN, "test_sigterm.py::test_a_second_signal_ends_it_at_once"),
    ),
    Row(
        "10",
        "SIGTERM to one process of two; one killed; one stuck",
        "both save the same step; survivors end and a restart goes on; a stuck one shows its stacks, code 75",
        (
            Detector(
                "empathax.parallel.stopping:StopVote._cast",
                "zero",
                ("parallel/test_stopping.py::test_the_devices_count_the_votes[True]",),
            ),
            Detector(
                "empathax.sigterm:_give_up",
                "nothing",
                ("test_sigterm.py::test_a_process_that_is_stuck_gives_up_and_shows_where",),
            ),
        ),
        (CUT_JOB, f"{MANY}test_supervisors_bring_a_killed_job_back"),
    ),
    Row(
        "11",
        "fewer processes than expected; other settings or code on one host",
        "never a run of one host alone; code 2 with the difference",
        (
            Detector(
                "empathax.parallel.agreement:_differences",
                "empty JSON list",
                ("parallel/test_agreement.py::test_each_difference_names_process_and_fact",),
            ),
            Detector(
                "empathax.parallel.agreement:source_digest",
                "no text",
                ("parallel/test_agreement.py::test_the_digest_sees_every_change_of_the_source",),
            ),
            Detector(
                "empathax.parallel.processes:initialize",
                "nothing",
                (f"{MANY}test_a_process_whose_peers_never_come_does_not_train_alone[1]",),
            ),
        ),
        (f"{MANY}test_processes_that_differ_all_stop",),
    ),
    Row(
        "12",
        "crash loop",
        "the supervisor gives up after n restarts without progress",
        (
            Detector(
                "tests.launch.test_supervise:SUPERVISE",
                "patient supervisor",
                ("launch/test_supervise.py::test_a_crash_loop_ends_with_the_last_code",),
            ),
        ),
        ("launch/test_supervise.py::test_a_run_that_falls_back_makes_no_progress",),
    ),
    Row(
        "13",
        "NaN batch",
        "the update is skipped in the graph, no bit of a parameter changes, it is counted, training goes on",
        (
            Detector(
                "empathax.training.step:_gated",
                "always finite",
                ("training/test_step.py::test_a_non_finite_step_changes_no_bit_and_is_counted[sft]",),
            ),
        ),
        ("training/test_step.py::test_a_non_finite_step_changes_no_bit_and_is_counted[dpo]",),
    ),
    Row(
        "14",
        "NaN at every step",
        "code 6 after n; nothing is saved within the streak; the last good step stays with keep=1",
        (
            Detector(
                "empathax.training.loop:Recorder._check_finite",
                "nothing",
                (
                    "training/test_loop.py::test_a_streak_that_is_too_long_ends_the_run",
                    "training/test_loop.py::test_nothing_is_saved_within_a_streak",
                ),
            ),
            Detector("empathax.training.checkpoint:_opened", "without streaks", (IN_A_STREAK,)),
        ),
    ),
    Row(
        "15",
        "NaN or Inf in loaded weights",
        "code 4 with each tensor and how many values",
        (
            Detector(
                "empathax.models.weights.loading:_of_all_processes",
                "empty dict",
                (f"{LOADING}test_values_that_are_not_finite_are_counted_by_tensor",),
            ),
        ),
    ),
    Row(
        "16",
        "the same seed twice",
        "metrics.jsonl is bitwise equal but for timings",
        (
            Detector(
                "empathax.data.loader:Loader._ordered",
                "without a seed",
                ("data/test_loader.py::test_batches_depend_on_seed_and_step_only",),
            ),
        ),
        (f"{KILLED_RUN}[sft-7]", "training/test_run.py::test_the_same_seed_twice_is_the_same_record"),
    ),
    Row(
        "17",
        "broken JSON, wrong types, missing fields, empty file, BOM, huge line, bad UTF-8",
        "code 3 with file:line and the first five reasons; with data.max_bad_fraction a list of rejects and a count",
        (
            Detector(
                "empathax.data.sources:_check_bad_rows",
                "nothing",
                ("data/test_sources.py::test_bad_rows_end_the_run_with_the_first_reasons",),
            ),
            Detector(
                "empathax.data.files:_check_encoding",
                "nothing",
                ("data/test_files.py::test_files_that_are_something_else",),
            ),
        ),
        (
            "data/test_files.py",
            "data/test_trl_format.py::test_what_is_wrong_with_a_row",
            "data/test_dataset.py::test_rejects_can_be_written",
        ),
    ),
    Row(
        "18",
        "every trained token cut; chosen equals rejected; empty reply; fewer rows than a batch",
        "dropped and counted by reason; over the limit code 3 with the remedy",
        (
            Detector(
                "empathax.data.dataset:_check_dropped",
                "nothing",
                ("data/test_dataset.py::test_what_is_dropped_is_counted_by_reason",),
            ),
        ),
        (
            "data/test_dataset.py::test_nothing_left",
            "data/test_loader.py::test_fewer_rows_than_a_step_takes",
            "data/test_examples.py::test_a_reply_without_room_is_dropped_with_a_reason",
        ),
    ),
    Row(
        "19",
        "wrong role order, unknown role, special tokens in user text",
        "code 3; or text: user text never becomes control tokens",
        (
            Detector(
                "empathax.data.trl_format:check_turns",
                "nothing",
                ("data/test_trl_format.py::test_what_is_wrong_with_a_row",),
            ),
            Detector(
                "empathax.data.control_text:ControlText.escaped",
                "second argument",
                ("data/test_chat.py::test_user_text_never_becomes_control_tokens",),
            ),
        ),
    ),
    Row(
        "20",
        "data, seed, tokenizer or template changed before a resume",
        "code 5, each difference on a line, nothing touched",
        (
            Detector(
                "empathax.training.checkpoint:check_same_run",
                "nothing",
                (
                    f"{SAME_RUN}test_what_the_rows_and_weights_are_is_compared_line_by_line",
                    f"{SAME_RUN}test_another_tokenizer_or_template_is_another_run",
                ),
            ),
        ),
        ("training/test_run.py::test_a_refused_resume_touches_nothing",),
    ),
    Row(
        "21",
        "a reader of rows dies",
        "code 3 with the row's number, never a hang",
        (
            Detector(
                "empathax.data.loader:_read",
                "unread",
                ("data/test_loader.py::test_a_row_that_cannot_be_read_is_named_and_never_hangs",),
            ),
        ),
    ),
    Row(
        "22",
        "token id beyond the vocabulary; tokenizer larger than the embedding",
        "code 2 before anything compiles",
        (
            Detector(
                "empathax.data.dataset:check_token_ids",
                "nothing",
                ("data/test_dataset.py::test_a_tokenizer_larger_than_the_embedding",),
            ),
            Detector(
                "empathax.models.tokenizers.tokenizer:Tokenizer.fitted_to",
                "first argument",
                ("models/tokenizers/test_tokenizer.py::test_a_tokenizer_larger_than_the_embedding_is_refused",),
            ),
        ),
        ("test_score.py::test_a_tokenizer_of_another_model_exits_2",),
    ),
    Row(
        "23",
        "weight shard cut, missing or extra; tensors twice or of another shape; another family; ../ in the index",
        "code 4 with all problems at once: tensor, found, expected",
        (
            Detector(
                "empathax.models.weights.checks:check_tensors",
                "nothing",
                (f"{LOADING}test_all_problems_come_in_one_error", f"{LOADING}test_weights_of_another_family"),
            ),
            Detector(
                "empathax.models.weights.safetensors:_index_problems",
                "empty list",
                (f"{SOURCE}test_a_tensor_in_two_shards_and_one_the_index_does_not_know",),
            ),
        ),
        (
            f"{SOURCE}test_every_broken_shard_is_reported_at_once",
            f"{SOURCE}test_a_name_twice_in_one_header",
            f"{SOURCE}test_an_index_that_leaves_its_directory_is_not_followed",
        ),
    ),
    Row(
        "24",
        "only pickled weights",
        "refused unread; no pickle, eval, exec or yaml.load in the package",
        (
            Detector(
                "empathax.models.weights.safetensors:_no_weights",
                "no text",
                (f"{SOURCE}test_pickled_weights_are_refused_unread",),
            ),
            Detector(
                "ast:parse", "with an eval", ("test_structure.py::test_nothing_runs_code_from_data[data/files.py]",)
            ),
        ),
        ("test_structure.py::test_nothing_runs_code_from_data",),
    ),
    Row(
        "25",
        "a chat template that escapes, loops or prints without end",
        "sandboxed and limited in time, memory and output; code 3",
        (
            Detector(
                "jinja2.sandbox:ImmutableSandboxedEnvironment",
                "plain Jinja",
                ("data/test_sandbox.py::test_nothing_outside_can_be_reached[{{ messages.append(1) }}]",),
            ),
            Detector("signal:setitimer", "nothing", ("data/test_sandbox.py::test_the_limit_is_what_ends_a_loop",)),
        ),
        ("data/test_sandbox.py::test_time_memory_and_output_are_limited",),
    ),
    Row(
        "26",
        "unknown setting, wrong type, mesh that does not divide",
        'code 2 with all problems in one message and "did you mean"',
        (
            Detector(
                "empathax.config.fields:_out_of_range",
                "no text",
                ("config/test_options.py::test_every_problem_in_one_message",),
            ),
            Detector(
                "empathax.config.mesh:problems", "empty list", ("config/test_mesh.py::test_every_complaint_at_once",)
            ),
        ),
        (
            "config/test_options.py::test_bad_flags_are_config_errors",
            "parallel/test_mesh.py::test_mesh_that_does_not_fit_names_sizes_and_devices",
        ),
    ),
    Row(
        "27",
        "export killed; TensorBoard's disk full",
        "no half directory under the final name; one warning, metrics.jsonl goes on",
        (
            Detector(
                "empathax.atomic:whole_directory",
                "final directory",
                ("models/weights/test_export.py::test_a_killed_export_leaves_nothing_under_the_final_name",),
            ),
            Detector(
                "empathax.training.tracking:Tracker._add",
                "raises",
                (f"{TRACKING}test_a_full_disk_for_tensorboard_is_a_warning_and_no_more",),
            ),
        ),
        ("models/weights/test_export.py::test_a_full_disk_leaves_nothing_behind",),
    ),
    Row(
        "28",
        "resume after a crash",
        "no step twice or missing in metrics.jsonl and event files",
        (
            Detector(
                "empathax.training.tracking:_drop_lines_after",
                "nothing",
                (
                    f"{TRACKING}test_resume_forgets_what_came_after_the_checkpoint",
                    f"{TRACKING}test_an_evaluation_that_is_made_again_is_written_once",
                ),
            ),
        ),
        (f"{KILLED_RUN}[sft-7]",),
    ),
    Row(
        "29",
        "LLM server down, slow, limiting, answering garbage or refusing",
        "bounded retries with growing waits, resumable, nothing written twice, code 3 with counts",
        (
            Detector(
                "empathax.evaluation.judging.response_cache:ResponseCache.get",
                "nothing",
                ("preferences/test_llm_sets.py::test_a_killed_run_goes_on_without_a_row_lost_or_asked_for_twice",),
            ),
            Detector(
                "empathax.evaluation.judging.chat_server:ChatServer._check",
                "nothing",
                (
                    "evaluation/judging/test_chat_server.py::test_a_server_that_is_down_ends_with_counts_and_the_next_run_goes_on",
                ),
            ),
        ),
        (
            "preferences/test_llm_sets.py::test_faults_that_pass_leave_no_trace_in_the_rows",
            "preferences/test_llm_sets.py::test_a_server_that_dies_ends_with_counts_and_the_run_goes_on_later",
            "preferences/test_llm_sets.py::test_refusals_and_empty_answers_are_counted_and_make_no_candidates",
            "evaluation/judging/test_chat_server.py::test_waits_are_bounded_and_random",
        ),
    ),
    Row(
        "A",
        "--workdir names a model or data, with or without --overwrite",
        "code 2, nothing touched; --overwrite removes a run's files only and says which",
        (
            Detector(
                "empathax.training.workdirs:_check_empty",
                "nothing",
                (f"{WORKDIRS}test_a_directory_of_something_else_is_never_touched",),
            ),
        ),
        (
            f"{WORKDIRS}test_overwriting_removes_what_a_run_wrote_and_says_so",
            f"{WORKDIRS}test_what_a_run_reads_is_not_removed_first",
        ),
    ),
    Row(
        "B",
        "a damaged checkpoint read by --model, export or from a converted model",
        "never used: an intact older step takes its place, else code 5",
        (
            Detector(
                "empathax.models.weights.steps:check_files",
                "nothing",
                (f"{OLDER_STEP}[gone]",),
            ),
            Detector(
                "empathax.models.weights.steps:Step._compare",
                "nothing",
                (f"{ORBAX}test_a_converted_model_with_other_arrays_is_refused",),
            ),
        ),
        (
            OLDER_STEP,
            "test_export.py::test_a_damaged_checkpoint",
            f"{ORBAX}test_a_converted_model_with_one_flipped_bit_is_refused",
            "test_checkpoint.py",
        ),
    ),
    Row(
        "C",
        "checkpoints gone, metrics.jsonl still there",
        "code 5, never a silent fresh start",
        (Detector("empathax.training.workdirs:_read_mark", "empty dict", (f"{LOST_STEPS}[checkpoints]",)),),
        (LOST_STEPS, f"{WORKDIRS}test_the_mark_remembers_what_was_saved"),
    ),
    Row(
        "D",
        "an update that makes parameters non-finite; NaN in exports and records",
        "skipped and never saved; code 4; null in metrics.jsonl",
        (
            Detector("empathax.training.step:_all_finite", "true in the graph", (INFINITE_UPDATE,)),
            Detector("empathax.models.weights.checks:check_finite", "nothing", (NOT_FINITE,)),
            Detector(
                "empathax.json_text:_with_nulls",
                "first argument",
                (f"{TRACKING}test_numbers_that_are_not_finite_are_null",),
            ),
        ),
        (IN_A_STREAK, "training/test_loop.py::test_nothing_is_saved_within_a_streak"),
    ),
    Row(
        "E",
        "SIGTERM while importing or loading",
        "code 75 from the first line on",
        (
            Detector(
                "empathax.sigterm:listening",
                "open context",
                ("test_sigterm.py::test_the_command_ends_with_75_whatever_it_is_importing_or_reading[3.0-no exec]",),
            ),
        ),
        (
            "test_sigterm.py::test_the_command_ends_with_75_whatever_it_is_importing_or_reading[1.0-exec]",
            "test_sigterm.py::test_where_nothing_would_be_lost_it_ends_at_once",
        ),
    ),
    Row(
        "F",
        "disk full for checkpoints or metrics.jsonl",
        "said at once under its own step, lines wait in memory, training goes on",
        (
            Detector("empathax.training.checkpoint:StageCheckpoints._fail", "nothing", (FAILED_SAVE,)),
            Detector(
                "empathax.training.tracking:RecordFile._append",
                "no text",
                (f"{TRACKING}test_lines_wait_in_memory_while_the_disk_is_full",),
            ),
        ),
    ),
    Row(
        "G",
        "small files that promise huge models, layers, headers or batches",
        "refused by name from the numbers alone, before memory is taken",
        (
            Detector(
                "empathax.models.weights.memory:check_fits",
                "nothing",
                ("models/weights/test_memory.py::test_the_dtype_that_is_loaded_decides",),
            ),
        ),
        (
            "models/weights/test_memory.py",
            f"{READERS}test_a_header_of_many_names_is_read_in_linear_time",
            f"{READERS}test_a_header_beyond_the_formats_limit",
            f"{READERS}test_gguf_headers_that_promise_too_much",
            "config/test_options.py::test_every_number_has_a_range",
        ),
    ),
    Row(
        "H",
        "malformed files of every kind",
        "one sentence that names the file, never a traceback",
        (
            Detector(
                "empathax.json_text:content_of",
                "open context",
                ("test_json_text.py::test_whatever_content_makes_code_fail_names_the_file",),
            ),
            Detector(
                "empathax.json_text:check_value",
                "nothing",
                (f'{REFUSED_JSON}[{{"a": "\\\\ud800"}}-half of a surrogate pair-0]',),
            ),
        ),
        (f"{READERS}test_some_damaged_files_end_in_a_sentence", REFUSED_JSON, f"{READERS}test_a_torn_line_of_metrics"),
    ),
    Row(
        "I",
        "surplus steps after a kill; escape codes in a template's text; equal keys; no steps",
        "removed; escaped and cut; refused",
        (
            Detector(
                "empathax.shown:shown",
                "text unchanged",
                (f"{READERS}test_what_a_template_raises_is_shown_in_part_and_obeyed_by_no_terminal",),
            ),
            Detector("empathax.training.checkpoint:StageCheckpoints._remove_others", "nothing", (SURPLUS,)),
        ),
        (REFUSED_JSON, "config/test_options.py::test_a_stage_without_steps"),
    ),
)
