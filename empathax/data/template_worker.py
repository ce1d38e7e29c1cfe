"""Renders an untrusted chat template in a child process of its own; run by data/chat.py, never imported.

Chat templates come with downloaded models: they are programs. Jinja's sandbox keeps them from reaching Python objects;
this process keeps them from looping, or printing or allocating without end: CPU time, memory and output are limited,
and the parent lives on when the limit ends the process. Reads one JSON object a line, answers with one a line.
"""

import datetime
import json
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

MEMORY_LIMIT_BYTES = 2 << 30
REASON_CHARACTERS = 1000  # of an error's text: a template may raise any


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` blocks render their body: trained tokens are found from the text, not from the template."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: "jinja2.parser.Parser") -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    """What templates call to refuse a list of messages."""
    raise jinja2.TemplateError(message)


def tojson(value: object, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """JSON without HTML escapes, as transformers has it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(source: str, date: str) -> jinja2.Template:
    """The environment of transformers' chat templates; `strftime_now` tells the `date`."""
    day = datetime.datetime.now() if date == "today" else datetime.datetime.fromisoformat(date)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = day.strftime
    return environment.from_string(source)


def render(template: jinja2.Template, variables: dict, max_characters: int) -> str:
    """The rendered text; stops as soon as it is longer than `max_characters`."""
    pieces, length = [], 0
    for piece in template.generate(**variables):
        length += len(piece)
        if length > max_characters:
            raise OverflowError(f"it prints more than {max_characters} characters")
        pieces.append(piece)
    return "".join(pieces)


def limit_cpu_time(seconds: float) -> None:
    """Ends the process after so much CPU time from now, by a signal that nothing handles; 0 = no limit.

    CPU time, not wall time: a busy machine must not fail a good template.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def reason(error: Exception) -> str:
    """What an error says, cut: the parent shows less of it. A template may raise what is no text."""
    try:
        return str(error)[:REASON_CHARACTERS] or type(error).__name__
    except Exception:
        return type(error).__name__


def answer(template: jinja2.Template, request: dict) -> dict:
    """{"texts"} or {"error", "kind"}: kind "refused" where the template raised, else "broken"."""
    limit_cpu_time(request["cpu_seconds"])
    try:
        return {"texts": [render(template, variables, request["max_characters"]) for variables in request["requests"]]}
    except jinja2.sandbox.SecurityError as error:
        return {"error": f"it does what the sandbox forbids: {reason(error)}", "kind": "broken"}
    except jinja2.UndefinedError as error:
        return {"error": reason(error), "kind": "broken"}
    except jinja2.TemplateError as error:
        return {"error": reason(error), "kind": "refused"}
    except MemoryError:
        return {"error": "it takes too much memory", "kind": "broken"}
    except RecursionError:
        return {"error": "it calls itself too deeply", "kind": "broken"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {reason(error)}", "kind": "broken"}
    finally:
        limit_cpu_time(0)


def main() -> None:
    """Compiles the template of the first line, then renders a request a line."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # a system without such limits: CPU time and output are still limited
    reply = sys.stdout
    try:
        request = json.loads(sys.stdin.readline())
        limit_cpu_time(request["cpu_seconds"])  # the compiler works out constant expressions
        template = compile_template(request["source"], request["date"])
        limit_cpu_time(0)
        print(json.dumps({}), file=reply, flush=True)
    except Exception as error:  # not only jinja2's: its compiler works with the template's own numbers and names
        line = getattr(error, "lineno", None)
        where = f"line {line}: " if line else ""
        print(json.dumps({"error": f"{where}{reason(error)}", "kind": "broken"}), file=reply, flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(answer(template, json.loads(line))), file=reply, flush=True)


if __name__ == "__main__":
    main()
