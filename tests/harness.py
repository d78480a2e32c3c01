"""What the run scripts in Python share: which ring3 to run, running it on a pipe or on a
terminal, tiny guests as bytes, and counting ("N passed, N failed" is for tests/run)."""
import hashlib
import os
import pathlib
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
RING3 = os.environ.get("RING3", str(ROOT / "build" / "ring3"))
# A sanitized or valgrinded build is slower; limits here are against hangs, never for speed.
SLOWER = float(os.environ.get("RING3_TEST_SLOWER", "1"))
# A shell's background job ignores these two, and what it starts inherits that.
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


class Skipped(Exception):
    pass


def scratch():
    return tempfile.TemporaryDirectory(prefix="ring3-test-")


def run(*args, timeout=60, stdin=b"", **kw):
    """Runs ring3 with args to its end; returns CompletedProcess with text. A hang fails."""
    p = subprocess.Popen([RING3, *map(str, args)], stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)
    try:
        out, err = p.communicate(stdin if isinstance(stdin, bytes) else None, timeout=timeout * SLOWER)
    except subprocess.TimeoutExpired:
        p.kill()
        out, err = p.communicate()
        raise AssertionError(f"still running after {timeout} s: {args}\n{out[-2000:]!r}\n{err[-2000:]!r}") from None
    return subprocess.CompletedProcess(p.args, p.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


started = []  # what a test that fails may leave running


def refuses(args, status, *words):
    """ring3 run args ends with that status and one line on stderr that has all words."""
    r = run("run", *args, timeout=20)
    assert r.returncode == status, f"{args}: status {r.returncode}, not {status}: {r.stderr}"
    assert r.stdout == "", f"{args}: {r.stdout!r} on standard output"
    lines = r.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("ring3: "), f"{args}: {r.stderr!r}"
    for w in words:
        assert w in lines[0], f"{args}: no {w!r} in: {lines[0]}"


def start(*args, **kw):
    started.append(subprocess.Popen([RING3, *map(str, args)], **kw))
    return started[-1]


class Terminal:
    """ring3 on a terminal of its own."""

    def __init__(self, *args, **kw):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.text = ""
        self.seen = 0
        self.p = start(*args, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True, **kw)

    def read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            self.text += os.read(self.master, 65536).decode(errors="replace")
            return True
        return False

    def expect(self, what, timeout=300):
        end = time.monotonic() + timeout * SLOWER
        while (at := self.text.find(what, self.seen)) < 0:
            if time.monotonic() > end or (not self.read(0.2) and self.p.poll() is not None and not self.read(0.2)):
                self.p.kill()
                raise AssertionError(f"{what!r} did not come (status {self.p.poll()}); the end of what did:\n{self.text[-3000:]}")
        self.seen = at + len(what)

    def send(self, data):
        os.write(self.master, data.encode())

    def end(self, timeout=60):
        """Waits for its end; returns (status, the terminal is as it was)."""
        end = time.monotonic() + timeout * SLOWER
        while self.p.poll() is None:
            self.read(0.1)
            if time.monotonic() > end:
                self.p.kill()
                raise AssertionError(f"did not end; the last output:\n{self.text[-3000:]}")
        while self.read(0.1):
            pass
        # What puts the terminal back after SIGKILL may need a moment.
        for _ in range(20):
            same = termios.tcgetattr(self.slave) == self.before
            if same:
                break
            time.sleep(0.1)
        os.close(self.master)
        os.close(self.slave)
        return self.p.returncode, same


# ---- machines with a name and a screen -----------------------------------------------------

def need(*what):
    """Skips the test unless these files and programs are there."""
    for w in what:
        if not (pathlib.Path(w).exists() if str(w).startswith("/") else shutil.which(w)):
            raise Skipped(f"{w} is not there")


class Named:
    """A machine with a name that `ring3 ctl` knows in the environment env."""
    count = 0

    def take_name(self, d):
        Named.count += 1
        self.name = f"m{Named.count}"
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(d)}

    def ctl(self, *command, ok=True):
        """The output of ring3 ctl; with ok=False how it ended, whatever that is."""
        r = subprocess.run([RING3, "ctl", self.name, *map(str, command)], env=self.env, capture_output=True, timeout=60 * SLOWER)
        assert not ok or r.returncode == 0, (command, r.stderr.decode())
        return r.stdout.decode(errors="replace") if ok else r

    def see(self, *words, limit=240):
        """Waits until all words are on the screen; the screen's text."""
        end = time.monotonic() + limit * SLOWER
        text = ""
        while not all(w in text for w in words):
            if time.monotonic() > end or self.p.poll() is not None:
                self.p.kill()
                said = self.p.stderr.read().decode() if self.p.stderr else ""
                raise AssertionError(f"never saw {words}; status {self.p.poll()}\n{text}\n{said}")
            time.sleep(0.2)
            r = self.ctl("screen", ok=False)
            text = r.stdout.decode() if r.returncode == 0 else ""
        return text


class NamedTerminal(Named, Terminal):
    """A machine with its serial console on a terminal, and a name; env: more of its environment."""

    def __init__(self, d, *args, **env):
        self.take_name(d)
        self.env |= env
        Terminal.__init__(self, "run", "--name", self.name, *args, env=self.env)


class Machine(Named):
    """A machine with a screen, and nobody at its serial port."""

    expect = Named.see

    def __init__(self, d, *args, engine="bt"):
        self.take_name(d)
        self.p = start("run", "--name", self.name, "--engine", engine, "--serial", "none", *args, env=self.env,
                       stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def end(self, how="stop", status=67):
        if how:
            self.ctl(how)
        assert self.p.wait(120 * SLOWER) == status, (self.p.returncode, self.p.stderr.read().decode())


# ---- tiny guests: flat 16-bit programs at 0x7c00 ------------------------------------------

HANG = b"\xf4\xeb\xfd"                       # hlt; jmp to it


def guest_exit(code):
    return bytes([0xB0, code, 0xE6, 0xF4]) + HANG


def guest_print(text, then=None):
    """Writes text to the first serial port (few characters: it does not wait), then `then`."""
    then = guest_exit(0) if then is None else then
    code = b"\xba\xf8\x03\xac\x84\xc0\x74\x03\xee\xeb\xf8" + then
    return b"\xbe" + (0x7C00 + 3 + len(code)).to_bytes(2, "little") + code + text.encode() + b"\0"


# Sends back what it receives; ends with status 33 after a 'q'.
GUEST_ECHO = bytes.fromhex("bafd03ec a80174fb baf803 ec ee 3c71 75ef") + guest_exit(16)
GUEST_SPIN = b"\xfa\xeb\xfe"                 # cli; jmp $
GUEST_HALT = b"\xfa" + HANG                  # cli; hlt for ever
GUEST_TRIPLE = bytes.fromhex("0f011e0400 fa cc")  # lidt of a limit of 0 from the code at 4; int3
GUEST_FLOOD = bytes.fromhex("baf803 b041 ee ebfd")  # 'A' to the serial port for ever


def assemble(d, text):
    """A 16-bit program at 0x7c00 from GNU assembler text."""
    (d / "guest.S").write_text(".code16\n.globl _start\n_start:\n" + text + "\n")
    subprocess.run(["gcc", "-m32", "-c", d / "guest.S", "-o", d / "guest.o"], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", d / "guest.o", "-o", d / "guest.bin"], check=True)
    return (d / "guest.bin").read_bytes()


def flat(path, code, mode=16):
    pathlib.Path(path).write_bytes(code)
    return ["--kernel", f"{path},format=flat,mode={mode}"]


# ---- file systems for guests ----------------------------------------------------------------

def image(d, name="disk.img", size=64 << 20):
    """An ext4 file system with a file of random bytes in it: (path, the file's SHA-256)."""
    path, data = d / name, os.urandom(3_000_001)
    (d / "data").write_bytes(data)
    with open(path, "wb") as f:
        f.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    debugfs(path, f"write {d / 'data'} from-host", write=True)
    return path, hashlib.sha256(data).hexdigest()


def debugfs(path, command, write=False):
    r = subprocess.run(["debugfs", *(["-w"] if write else []), "-R", command, path], capture_output=True, check=True)
    return r.stdout


def check_clean(path):
    r = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


# ---- counting -------------------------------------------------------------------------------

def main(cases, verified=None):
    """Runs cases (functions; their names say what); prints failures and the sum. verified: in these all of bt's blocks
    are verified, which takes half of the time of a system's boot, in the others a sample. Without it, as in the
    environment: tests/run asks for all."""
    passed = failed = skipped = 0
    only = sys.argv[1:]
    for case in cases:
        if only and not any(o in case.__name__ for o in only):
            continue
        t = time.monotonic()
        if verified is not None:
            os.environ["RING3_BT_VERIFY"] = "all" if case in verified else ""
        try:
            with scratch() as d:
                case(pathlib.Path(d))
            passed += 1
            verdict = "ok"
        except Skipped as e:
            skipped += 1
            verdict = f"skipped: {e}"
        except Exception:
            failed += 1
            verdict = "FAILED\n" + traceback.format_exc()
        for p in started:
            if p.poll() is None:
                p.kill()
                p.wait()
        started.clear()
        print(f"{case.__name__} ({time.monotonic() - t:.1f} s): {verdict}", flush=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed else 77 if skipped and not passed else 0)
