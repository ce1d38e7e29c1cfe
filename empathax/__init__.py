"""empathax: teach language models to support people, in JAX and Flax. The map of the package:

Commands (python -m empathax.NAME; docs/commands.md)
    train.py             runs a config's stages, or goes on where they stopped
    evaluate.py          held-out metrics and replies of one model
    score.py             log-probs of given replies, row by row
    chat.py              talk to a model, or to two side by side
    export.py            a checkpoint as a Hugging Face directory
    checkpoint.py        what checkpoints hold, and whether they are what was saved
    build_preferences.py preference pairs by rules or with an LLM, ranked, filtered, looked at
    train_classifier.py  the classifiers that evaluation uses: levels of validation, epitome-style heads
    report.py            evaluated models as one comparison: Markdown, LaTeX, JSON, HTML
    plan.py              memory, network and time of a config on hardware that is not there

Used everywhere
    errors.py            every error a user can meet, and its exit code
    sigterm.py           a stop by SIGTERM: at once, or when it has been saved
    json_text.py         JSON that users give, read within bounds; what is wrong with a file as one error
    shown.py             text from files, fit to be shown in a message
    atomic.py            files and directories that are written whole or not at all

config/: ConfigDict in, frozen and checked dataclasses out
    options.py           the settings with their defaults; names that they are chosen from
    read.py              a ConfigDict checked and built
    fields.py            what a setting may hold; checks of all of them at once
    arguments.py         what a command's argument may be: paths, counts, numbers
    flags.py             --config flags to settings: one run, or the variations of a sweep
    losses.py            which preference losses exist and what each takes; what does not fit together
    lora.py              adapters: names of what they are on, ranks and scales
    hardware.py          TPU slices and GPU nodes by name, with their memory and rates
    mesh.py              what config.mesh may say: sizes, presets by hardware, rules of what lies where
    recipes.py           the recipes behind the files in configs/

models/: what a decoder is, and how it gets its weights
    transformer.py       the NNX decoder: parameters declared, forward pass as a pure function
    layers.py, rope.py   the arithmetic of a layer; rotary positions
    primitives.py        matrix product, norm and gated activation, with backward passes of their own
    remat.py             what the backward pass keeps of a layer, on the device or in the host's memory
    kv_cache.py          prefill and single decode steps
    architecture/: what a decoder looks like
        model_config.py  the fields of ModelConfig
        presets.py       small architectures for tests
        hf_config.py, hf_fields.py, hf_rope.py    config.json read and written
        gguf_config.py   GGUF metadata to ModelConfig
    attention/: attention over prefix trees
        dispatch.py      which implementation is taken; the dense reference
        flash.py         the memory-linear form: one gradient rule over three kernels, split over the mesh
        tree_layout.py   masks, scores and lists of visible blocks, which the kernels share
        blockwise.py     the portable kernel, in plain XLA
        tpu.py, gpu.py   the Pallas kernels for TPUs, and for GPUs on Triton
    weights/: parameters in files
        source.py        what a user writes for a model, resolved
        locations.py     the hub, installed packages, stores such as gs://
        loading.py       files to parameters, read into shards
        memory.py        what the machine has, and whether a model fits
        checks.py        a file's tensors against those that a model needs
        names.py         the one name table, read both ways
        safetensors.py, gguf.py, byte_files.py    the files themselves, by byte range
        digests.py       digests of arrays, in the graph, and of files
        orbax.py         trees of arrays as Orbax stores them
        steps.py         a run's checkpoints and converted models, verified as they are read
        export.py        a Hugging Face directory, whole or not at all
    tokenizers/: text to ids and back
        tokenizer.py     the Tokenizer; the one of bytes
        template_defaults.py    a chat template's own variables, set at its head
        hf.py, gguf.py, sentencepiece.py    read from tokenizer.json, GGUF metadata, sentencepiece models
    lora/: low-rank adapters
        adapters.py      a parameter tree of their own: made, put beside the kernels, merged
        low_rank.py      their arithmetic: LoRA, DoRA, dropout
        quantized.py     kernels that are not trained, in 4 or 8 bits
        files.py         PEFT's format; a run's checkpoints
    encoder/: encoders of the BERT family
        encoder.py       declared like the decoder; token states and sentence embeddings
        files.py, text.py    their files; texts to rows

data/: from files to rows of prefix trees
    dataset.py           settings in, packed rows out
    files.py, splits.py, sources.py     what data.path names: its files and splits, read and typed
    messages.py          messages and their roles, under the names of several formats
    trl_format.py, support_corpora.py     the formats: TRL's, ESConv, EmpatheticDialogues
    transcripts.py       Human: and Assistant: in one text, as turns
    records.py           typed rows
    examples.py          rows to examples in token ids, shortened to max_length
    labeled.py           single replies with a label, and mismatched ones for the estimate of the KL
    chat.py              messages to ids through a chat template, with the exact tokens of a reply
    control_text.py      control tokens kept out of what people wrote; text to ids
    templates.py         built-in templates; system prompts
    sandbox.py, template_worker.py        templates run in a limited child process
    prefix_tree.py       common beginnings laid out once
    row_plan.py, packing.py  trees into rows; what rows cost and save
    passes.py            at most n pairs of a dialogue in a step
    batch.py             the arrays a step receives
    loader.py            batches as a pure function of (seed, step)
    samples/             packaged dialogues and pairs (CC0)

parallel/: many devices, many processes
    mesh.py, rules.py    devices along data, fsdp, tensor; which parameter dim lies where
    processes.py         many processes: found, each with its rows
    agreement.py         what they tell each other; what they must have in common before they start
    stopping.py          SIGTERM granted by all of them at the same step
    host.py              where compiled programs are kept; memory in large pages

objectives/: the losses, as sums that add up over any split
    logprobs.py          chunked log-softmax with its own gradient; the loss of SFT
    preference.py        the loss of a batch of pairs, as the settings say
    pair_losses.py       the formulas of the preference losses
    unpaired.py          the losses of single replies with a label
    pairs.py             both replies of a pair out of a batch: log-probs, discounted tails, importance weights

evaluation/: replies and what they are worth
    reply_set.py         held-out turns to be answered; texts that something else wrote
    reply_metrics.py     every metric of a set of replies
    reply_record.py      scored replies as a record
    scoring.py           log-probs of a file's replies
    output.py, progress.py    result files; progress on stderr
    typed_json.py        JSON read into dataclasses
    generation/: replies of a model
        decoding.py, sampling.py, prompt_tree.py    generation in one compiled function
        replies.py, speaker.py, prompt_file.py      replies to prompts, in batches or in a terminal
    metrics/: what replies are measured by
        text_metrics.py  BLEU, ROUGE-L and Distinct of replies
        overlap.py, ngrams.py    what they count of each reply, in the graph
        words.py         text to word ids, as the reference implementations cut it
        dialogue_health.py, readability.py    repetition, length, questions, leaked templates; readability
        levels.py        validation_gap: levels of validation over the course of dialogues
        semantic.py      cosine of sentence embeddings, BERTScore
        statistics.py, bootstrap.py    a metric from its per-reply parts; confidence intervals over dialogues
    classifiers/: an encoder with heads: levels of validation, epitome-style empathy
        classifier.py    what reads a text, and its directory
        task.py, data.py, training.py    its training and its model card
    judging/: chat servers and LLM judges
        chat_server.py   any OpenAI-compatible server: requests in, outcomes out, asked and paid for once
        chat_requests.py, openai_client.py, response_cache.py    their types; one call; answers on disk
        limits.py        how much patience; what may be asked a minute, and cost
        server_replies.py    replies of a server, as a row of a comparison
        judge.py, judge_pairs.py    an LLM as judge: of single replies, of two models in both orders
    report/: evaluations compared
        record.py        one model's evaluation; evaluation.json
        files.py         records checked against each other, a report's files; rows compared by an LLM
        table.py         its numbers; headings, digits, which way is better
        paper.py         the paper's Table 1; where the order of rows is the same
        curves.py        learning curves out of metrics.jsonl
        text.py          Markdown, LaTeX, JSON
        page.py, charts.py, level_plot.py    the HTML page; its charts as inline SVG; levels as a picture

training/: from settings to a trained model
    sweep.py             variations of a config side by side, as one report; the settings in which they differ
    run.py               a run: its stages in order, before and after
    loop.py              the steps of a stage, what records them, what is measured in between
    step.py              the compiled step
    forward.py           log-probs of a batch's replies under a model
    stages/: the kinds of stages
        stage.py         what a kind says of itself
        sft.py, dpo.py   what they read, their loss, reference and held-out metrics
    experiment.py        model header, tokenizer, mesh and data, checked before anything compiles
    workdirs.py          the directory of a run, one run in each
    trainable.py         what a stage trains: the whole model, or an adapter on a frozen one
    state.py, optimizer.py    what a step changes, and how
    reference.py         the frozen reference: resident, or its log-probs from a cache
    held_out.py, evaluate_model.py    held-out data under a model: in a run, without one
    metrics.py           sums to the numbers of a report
    checkpoint.py        checkpoints, what they were trained with, the best evaluation
    checkpoint_table.py  what checkpoints hold, as a table
    export.py            from a checkpoint to a Hugging Face directory
    tracking.py          metrics.jsonl, TensorBoard, progress
    results.py           what was measured of each model; the before/after table; records

preferences/: preference data, made, judged and known (docs/preference_data.md)
    pairs.py             contexts (a supporter's turns), candidates (replies) and pairs of these
    source.py            dialogues, read into the contexts that pairs are made for
    rules.py             sets made by rules
    llm_run.py, llm_sets.py    sets made with a language model: from the command's flags; portion by portion
    candidates.py        what a model is asked to write: a reply per level of validation, per style, or several samples
    backends.py          who writes and judges: a server, or a model in this process
    ranking.py           an LLM as judge, the classifier of levels; votes and their majority
    review.py            human ranks as CSV
    filters.py           which pairs are kept, by refusals and harm among others
    overlap.py           words shared with held-out dialogues; Jaccard similarity
    surface_cues.py      how far a bag of words and length go
    inspection.py        any set looked at; the HTML page
    set_files.py         the directory of a set; its README.md

planning/: what a config needs of hardware that is not there
    child_process.py     the process that compiles, and how it is run and heard
    compile.py           a stage's functions compiled for a topology; the plan as plain values
    steps.py             those functions lowered, with the shapes and shardings of a run
    topology.py          how jax gets devices that are not there
    model.py             an architecture without its weights
    rows.py              the data's rows, or assumed ones
    costs.py             bytes of a device; least time; useful arithmetic
    hlo.py, collectives.py    compiled programs read: loops, what is sent between devices
    search.py, plan_text.py    the largest batch, the smallest slice; a plan in words
"""
