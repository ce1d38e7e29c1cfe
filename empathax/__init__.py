"""empathax: teach language models to support people, in JAX and Flax. The map of the package:

Commands (python -m empathax.NAME; docs/commands.md)
    train.py             runs a config's stages, or goes on where they stopped
    evaluate.py          held-out metrics and replies of one model
    score.py             log-probs of given replies, row by row
    chat.py              talk to a model, or to two side by side
    export.py            a checkpoint as a Hugging Face directory
    build_preferences.py preference pairs by rules or with an LLM, ranked, filtered, looked at
    train_classifier.py  the classifiers that evaluation uses: levels of validation, epitome-style heads
    report.py            evaluated models as one comparison: Markdown, LaTeX, JSON, HTML
    plan.py              memory, network and time of a config on hardware that is not there

Settings and errors
    config.py            ConfigDict in, frozen and checked dataclasses out
    config_fields.py     what a setting may hold; checks of all of them at once
    config_flags.py      --config flags to settings: one run, or the variations of a sweep
    losses.py, loss_checks.py    which preference losses exist and what each takes; what does not fit together
    lora_settings.py     adapters: names of what they are on, ranks and scales; what does not go together
    hardware.py          TPU slices and GPU nodes by name, with their memory and rates
    mesh_settings.py     what config.mesh may say: sizes, presets by hardware, rules of what lies where
    recipes.py           the two papers' recipes, for the files in configs/
    errors.py            every error a user can meet, and its exit code

models/: what a decoder is, and how it gets its weights
    architecture.py      the door: ModelConfig from config.json, GGUF metadata or a preset
    model_config.py      the fields of ModelConfig
    hf_config.py, hf_fields.py, hf_rope.py, hf_config_writer.py    config.json read and written
    gguf_config.py       GGUF metadata to ModelConfig
    transformer.py       the NNX decoder: parameters declared, forward pass as a pure function
    remat.py             what the backward pass keeps of a layer, on the device or in the host's memory
    sharding.py          rows of activations split over the mesh
    layers.py, rope.py   the arithmetic of a layer; rotary positions
    primitives.py        matrix product, norm and gated activation, with backward passes of their own
    lora.py              adapters as a parameter tree of their own: made, hung beside the kernels, merged
    low_rank.py          their arithmetic: LoRA, DoRA, dropout
    quantized.py         kernels that are not trained, in 4 or 8 bits
    lora_files.py, lora_checkpoint.py    in PEFT's format, in a run's checkpoints
    adapted.py           a model with adapters merged in, as a model to load
    attention.py         the door to attention over prefix trees; its dense reference
    flash.py             its memory-linear form: one gradient rule over three kernels, split over the mesh
    tree_layout.py       masks, scores and lists of visible blocks, which the kernels share
    blockwise.py         the portable kernel, in plain XLA
    tpu_attention.py, tpu_kernels.py    the Pallas kernels for TPUs
    gpu_attention.py     the Pallas kernels for GPUs, on Triton
    kv_cache.py          prefill and single decode steps
    source.py            what a user writes for a model, resolved
    hub.py, fingerprint.py    models on the hub; digests of a model's files
    installed_weights.py weights inside installed packages
    weights.py           files to parameters, read into shards
    tensor_checks.py     a file's tensors against those that a model needs
    weight_names.py      the one name table, read both ways
    hf_files.py, gguf_file.py, mapped_file.py    the files themselves
    range_file.py, remote.py    files by byte range, on disks and in stores such as gs://
    orbax_files.py       parameters in Orbax directories: converted ones, and those of runs
    tokenizer.py         text to ids and back
    tokenizer_hf.py, tokenizer_gguf.py, tokenizer_sentencepiece.py, tokenizer_bytes.py, tokenizer_backend.py
                         where it comes from
    export.py            a Hugging Face directory, whole or not at all
    encoder.py           encoders of the BERT family: declared like the decoder, token states and sentence embeddings
    encoder_files.py, encoder_text.py    their files; texts to rows

data/: from files to rows of prefix trees
    dataset.py           the door: settings in, packed rows out
    locations.py, files.py, sources.py    what data.path names, read and typed
    trl_format.py, support_corpora.py     the formats: TRL's, ESConv, EmpatheticDialogues
    records.py           typed rows
    examples.py          rows to examples in token ids
    labeled.py           single replies with a label, and mismatched ones for the estimate of the KL
    chat.py              messages to ids through a chat template, with the exact tokens of a reply
    families.py, prompts.py               built-in templates; system prompts
    sandbox.py, template_worker.py        templates run in a limited child process
    encoding.py          truncation to max_length
    prefix_tree.py       common beginnings laid out once
    row_plan.py, leveling.py, packing.py  trees into rows
    packing_report.py    what rows cost and save
    passes.py            at most n pairs of a dialogue in a step
    batch.py             the arrays a step receives
    loader.py            batches as a pure function of (seed, step)
    samples/             packaged dialogues and pairs (CC0)

parallel/
    mesh.py, rules.py    devices along data, fsdp, tensor; which parameter dim lies where
    distributed.py       many processes: found, left together, each with its rows
    exchange.py, agreement.py    what they tell each other; what they must have in common before they start
    stopping.py          SIGTERM granted by all of them at the same step
    compilation.py, huge_pages.py    where compiled programs are kept; memory in large pages

objectives/
    logprobs.py          chunked log-softmax with its own gradient
    sft.py, preference.py    the losses, as sums that add up over any split; preference.py is the door to these:
    margin_losses.py, ratio_losses.py, sorted_losses.py, reference_free_losses.py    the families of preference losses
    unpaired.py          the losses of single replies with a label
    pairs.py             both replies of a pair out of a batch: log-probs, discounted tails, importance weights
    divergences.py       what an f-divergence makes of a log-ratio

evaluation/
    reply_set.py, prediction_files.py    held-out turns to be answered; texts that something else wrote
    reply_metrics.py     every metric of a set of replies: the door to all below
    reply_record.py      scored replies as a record
    scoring.py           log-probs of a file's replies
    validation.py        validation_gap: levels of validation over the course of dialogues
    level_data.py, level_shares.py, level_plot.py    levels from ESConv's strategies; shares per quartile; as a picture
    semantic.py          cosine of sentence embeddings, BERTScore
    output.py, progress.py    result files; progress on stderr
    generation/          replies of a model
        decoding.py, sampling.py, prompt_tree.py    generation in one compiled function
        seen_tokens.py, stop_tokens.py    what a repetition penalty falls on; what ends a reply
        replies.py, speaker.py, prompt_file.py      replies to prompts, in batches or in a terminal
    text/                texts against references
        text_metrics.py, text_statistics.py    BLEU, ROUGE-L and Distinct: the door; reply by reply, for intervals
        bleu.py, rouge.py, ngrams.py    what they count, in the graph
        pair_sums.py, exact_sum.py, match_masks.py, id_rows.py    sums over pairs, exact; bit masks; rows of ids
        words.py, tokenizations.py      text to word ids, as the reference implementations cut it
        dialogue_health.py, style.py    repetition, length, questions, kinds of response, leaked templates; readability
    classifiers/         an encoder with heads: levels of validation, epitome-style empathy
        classifier.py    what reads a text
        task.py, training.py, scores.py, epitome_data.py    its training
        files.py, card.py    its directory and model card
    judging/             chat servers and LLM judges
        chat_server.py   any OpenAI-compatible server: requests in, outcomes out, asked and paid for once
        chat_requests.py, openai_client.py, response_cache.py    their types; one call; answers on disk
        server_options.py, limits.py    how much patience; what may be asked a minute, and cost
        server_replies.py    replies of a server, as a row of a comparison
        judge.py, judge_pairs.py    an LLM as judge: of single replies, of two models in both orders
        judge_material.py, judge_answers.py, rubrics/    what it is shown; what it said
    report/              evaluations compared
        record.py, record_file.py    one model's evaluation; evaluation.json
        statistics.py, reply_statistics.py    per-reply parts from which metrics are computed again
        bootstrap.py     confidence intervals over dialogues, differences in pairs
        curves.py        learning curves out of metrics.jsonl
        files.py, judged.py    records checked against each other, a report's files; rows compared by an LLM
        table.py, columns.py    its numbers; headings, digits, which way is better
        paper.py, ordering.py   the paper's Table 1; where the order of rows is the same
        text.py          Markdown, LaTeX, JSON
        page.py, html.py, charts.py, templates/    the HTML page; its charts as inline SVG

training/
    job.py, workdirs.py  everything checked before anything compiles; the directory, one run in each
    run.py, stage.py, loop.py    a run, a stage of it, its steps
    trainable.py         what a stage trains: the whole model, or an adapter on a frozen one
    same_run.py          what a checkpoint must have been trained with to be continued
    objective.py         a model's log-probs handed to the losses
    step.py, state.py, optimizer.py    the compiled step and what it changes
    param_groups.py      parameters by their names: frozen ones, weight decay, rates by layer
    reference.py         the frozen reference: resident, or its log-probs from a cache
    sweep.py, hparams.py    variations of a config side by side, as one report; what tells them apart
    held_out.py, records.py, evaluate_model.py    held-out data under a model; as parts of a record; without a run
    held_out_preferences.py    held-out pairs or single replies: rewards and losses
    best.py              the best evaluation of a stage
    metrics.py           sums to the numbers of a report
    checkpoint.py, checkpoint_export.py    Orbax; export
    tracking.py, report.py    metrics.jsonl, TensorBoard, progress; the before/after table

preferences/: preference data, made, judged and known (docs/preference_data.md)
    contexts.py, pairs.py    where a supporter speaks; a pair with where everything in it comes from
    rule_sets.py         the door to sets made by rules
    llm_sets.py          the door to sets made with a language model, which these make:
    llm_source.py, candidate_files.py    the contexts to write for; what was written and how it was ranked, as files
    candidates.py, prompts/    a reply per level of validation, per style, or several samples
    backends.py, local_backend.py    who writes and judges: a server, or a model in this process
    ranking.py, rankers.py    votes and their majority; an LLM as judge, the classifier of levels
    review.py, agreement.py    human ranks as CSV; Fleiss' kappa
    flags.py, dry_run.py    the command's flags; what a run would ask and cost
    rules.py, reply_pool.py, emotions.py    the rules; replies moved between dialogues; Plutchik's wheel
    filters.py           which pairs are kept, by these:
    words.py             a reply as it is compared: without case and spacing, in words
    wordings.py, near_duplicates.py, overlap.py    refusals and harm; Jaccard similarity; held-out dialogues
    surface_cues.py      how far a bag of words and length go
    inspection.py, inspect_page.py, templates/    any set looked at; the HTML page
    set_files.py, data_card.py    the directory of a set; its README.md

planning/: what a config needs of hardware that is not there
    worker.py, child.py  the process that compiles, and how it is run and heard
    compile.py           a stage's functions compiled for a topology; the plan as plain values
    steps.py             those functions lowered, with the shapes and shardings of a run
    topology.py, gpu_specs.py    how jax gets devices that are not there
    model.py, known_models.py    an architecture without its weights
    rows.py              the data's rows, or assumed ones
    memory.py, roofline.py, flops.py    bytes of a device; least time; useful arithmetic
    hlo.py, collectives.py    compiled programs read: loops, what is sent between devices
    search.py, report.py the largest batch, the smallest slice; a plan in words
"""
