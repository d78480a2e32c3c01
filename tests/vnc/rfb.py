"""A VNC viewer for tests (RFC 6143): handshake, raw and ZRLE pictures, keys, pointer; and PNG files."""
import select
import socket
import struct
import subprocess
import zlib

RAW, ZRLE, SIZE, POINTER_CHANGE, EXTENDED_KEYS = 0, 16, -223, -257, -258

# bits, depth, big endian, true colour, maxima, shifts
FORMAT_32 = (32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
FORMAT_32_BIG = (32, 24, 1, 1, 255, 255, 255, 16, 8, 0)
FORMAT_32_HIGH = (32, 24, 0, 1, 255, 255, 255, 24, 16, 8)
FORMAT_32_DEEP = (32, 30, 0, 1, 1023, 1023, 1023, 20, 10, 0)
FORMAT_16 = (16, 16, 0, 1, 31, 63, 31, 11, 5, 0)
FORMAT_16_BIG = (16, 16, 1, 1, 31, 63, 31, 11, 5, 0)
FORMAT_8 = (8, 8, 0, 1, 7, 7, 3, 0, 3, 6)
FORMAT_MAPPED = (8, 8, 0, 0, 0, 0, 0, 0, 0, 0)


class Refused(Exception):
    pass


def response(password, challenge):
    """DES with the password as key, the bits of its bytes in opposite order: by openssl."""
    key = bytes(int(f"{b:08b}"[::-1], 2) for b in password.encode()[:8].ljust(8, b"\0"))
    return subprocess.run(["openssl", "enc", "-des-ecb", "-K", key.hex(), "-nopad", "-provider", "legacy", "-provider", "default"],
                          input=challenge, capture_output=True, check=True).stdout


class Viewer:
    def __init__(self, at, version="003.008", password=None, shared=1, timeout=60):
        self.s = socket.create_connection(at) if isinstance(at, tuple) else socket.socket(socket.AF_UNIX)
        if not isinstance(at, tuple):
            self.s.connect(str(at))
        self.s.settimeout(timeout)
        assert self.get(12) == b"RFB 003.008\n"
        self.s.sendall(f"RFB {version}\n".encode())
        self.authenticate(version, password)
        self.s.sendall(bytes([shared]))
        self.width, self.height, *form = self.unpack(">HHBBBBHHHBBBxxx")
        assert tuple(form) == FORMAT_32, form
        self.name = self.get(self.unpack(">I")[0]).decode()
        self.z = zlib.decompressobj()
        self.set_format(FORMAT_32, tell=False)
        self.pixels = [0] * (self.width * self.height)
        self.news = []   # pseudo-encodings that came
        self.area = 0    # pixels of the last update
        self.palette = None

    def authenticate(self, version, password):
        if version == "003.003":
            kind, = self.unpack(">I")
        else:
            kinds = self.get(self.get(1)[0])
            self.kinds = kinds
            kind = 2 if password is not None else 1
            if kind not in kinds:
                raise Refused(f"offers {list(kinds)}")
            self.s.sendall(bytes([kind]))
        if kind == 2:
            self.s.sendall(response(password or "", self.get(16)))
        if kind == 2 or version not in ("003.003", "003.007"):
            if self.unpack(">I")[0]:
                raise Refused(self.get(self.unpack(">I")[0]).decode() if version == "003.008" else "")

    def get(self, n):
        data = b""
        while len(data) < n:
            more = self.s.recv(n - len(data))
            if not more:
                raise Refused("closed")
            data += more
        return data

    def unpack(self, form):
        return struct.unpack(form, self.get(struct.calcsize(form)))

    # ---- what it says

    def set_format(self, form, tell=True):
        self.form = form
        bits, _, big, true, *rest = form
        if not true:
            rest = 7, 7, 3, 0, 3, 6
        self.max, self.shift = rest[:3], rest[3:]
        self.bytes, self.order = bits // 8, "big" if big else "little"
        used = sum(m << s for m, s in zip(self.max, self.shift))
        self.cut = None  # which byte of a pixel ZRLE leaves out
        if bits == 32 and form[1] <= 24 and true:
            if not used >> 24:
                self.cut = 0 if big else 3
            elif not used & 0xff:
                self.cut = 3 if big else 0
        if tell:
            self.s.sendall(struct.pack(">B3xBBBBHHHBBB3x", 0, *form))

    def set_encodings(self, *encodings):
        self.s.sendall(struct.pack(">BxH", 2, len(encodings)) + b"".join(struct.pack(">i", e) for e in encodings))

    def request(self, incremental=0, x=0, y=0, w=None, h=None):
        self.s.sendall(struct.pack(">BBHHHH", 3, incremental, x, y, w or self.width, h or self.height))

    def key(self, keysym, down):
        self.s.sendall(struct.pack(">BBxxI", 4, down, keysym))

    def extended_key(self, number, down, keysym=0):
        self.s.sendall(struct.pack(">BBHII", 255, 0, down, keysym, number))

    def pointer(self, x, y, buttons=0):
        self.s.sendall(struct.pack(">BBHH", 5, buttons, x, y))

    # ---- what it sees

    def color(self, value):
        """A pixel's value as (r, g, b) in the format's own levels."""
        return tuple(value >> s & m for m, s in zip(self.max, self.shift))

    def seen(self, rgb):
        """What a pixel 0xrrggbb looks like in this format."""
        return tuple(((rgb >> s & 255) * m + 127) // 255 for m, s in zip(self.max, (16, 8, 0)))

    def update(self):
        """Waits for one."""
        kind = self.get(1)[0]
        while kind == 1:
            first, n = self.unpack(">xHH")
            self.palette = [self.unpack(">HHH") for _ in range(n)]
            kind = self.get(1)[0]
        assert kind == 0, kind
        self.area = 0
        for _ in range(self.unpack(">xH")[0]):
            x, y, w, h, encoding = self.unpack(">HHHHi")
            if encoding == SIZE:
                self.width, self.height = w, h
                self.pixels = [0] * (w * h)
                self.news.append((SIZE, w, h))
            elif encoding in (POINTER_CHANGE, EXTENDED_KEYS):
                self.news.append((encoding, x))
            else:
                assert w and h and x + w <= self.width and y + h <= self.height, (x, y, w, h)
                self.area += w * h
                (self.raw if encoding == RAW else self.zrle)(x, y, w, h)
                assert encoding in (RAW, ZRLE), encoding

    def put(self, x, y, w, values):
        for k in range(0, len(values), w):
            at = (y + k // w) * self.width + x
            self.pixels[at:at + w] = [self.color(v) for v in values[k:k + w]]

    def raw(self, x, y, w, h):
        data = self.get(w * h * self.bytes)
        self.put(x, y, w, [int.from_bytes(data[k:k + self.bytes], self.order) for k in range(0, len(data), self.bytes)])

    def zrle(self, x0, y0, width, height):
        data = self.z.decompress(self.get(self.unpack(">I")[0]))
        at = 0
        size = self.bytes - (self.cut is not None)

        def pixel():
            nonlocal at
            p = data[at:at + size]
            at += size
            if self.cut is not None:
                p = p[:self.cut] + b"\0" + p[self.cut:]
            return int.from_bytes(p, self.order)

        for y in range(0, height, 64):
            for x in range(0, width, 64):
                w, h = min(64, width - x), min(64, height - y)
                kind = data[at]
                at += 1
                if kind == 0:
                    values = [pixel() for _ in range(w * h)]
                elif kind == 1:
                    values = [pixel()] * (w * h)
                else:
                    assert kind <= 16, kind
                    palette = [pixel() for _ in range(kind)]
                    bits = 1 if kind == 2 else 2 if kind <= 4 else 4
                    values = []
                    for _ in range(h):
                        row = int.from_bytes(data[at:at + (w * bits + 7) // 8], "big")
                        n = (w * bits + 7) // 8
                        at += n
                        values += [palette[row >> (8 * n - bits * (k + 1)) & (1 << bits) - 1] for k in range(w)]
                self.put(x0 + x, y0 + y, w, values)
        assert at == len(data), (at, len(data))

    def silent(self, seconds):
        """Nothing comes for so long."""
        return not select.select([self.s], [], [], seconds)[0]

    def closed(self):
        """The other end has closed, with or without something said before."""
        try:
            while self.s.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self):
        self.s.close()


def png(data):
    """(width, height, pixels as 0xrrggbb) of an RGB file without interlacing."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", data[at + 8:at + 8 + n])
            assert rest == [8, 2, 0, 0, 0], rest
        elif kind == b"IDAT":
            packed += data[at + 8:at + 8 + n]
        at += 12 + n
    lines, stride, before, pixels = zlib.decompress(packed), 3 * width, bytearray(3 * width), []
    for y in range(height):
        how, line = lines[y * (stride + 1)], bytearray(lines[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for k in range(stride):
            a, b, c = (line[k - 3] if k >= 3 else 0), before[k], (before[k - 3] if k >= 3 else 0)
            if how == 1:
                line[k] = line[k] + a & 255
            elif how == 2:
                line[k] = line[k] + b & 255
            elif how == 3:
                line[k] = line[k] + (a + b) // 2 & 255
            elif how == 4:
                p = a + b - c
                d = abs(p - a), abs(p - b), abs(p - c)
                line[k] = line[k] + (a if d[0] <= d[1] and d[0] <= d[2] else b if d[1] <= d[2] else c) & 255
        pixels += [line[k] << 16 | line[k + 1] << 8 | line[k + 2] for k in range(0, stride, 3)]
        before = line
    return width, height, pixels
