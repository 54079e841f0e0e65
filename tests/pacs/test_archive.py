"""Logins, lists of studies, and archives that do not behave: bounded, no secret and no identifier in a text."""

import datetime
import http.server
import io
import ssl
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness.dicom_files import slice_dataset, uid
from harness.finished_run import phantom_hu

from sahfl.errors import ConfigError, DataError, PacsError
from sahfl.pacs import archive as archives
from sahfl.pacs.archive import Archive
from sahfl.pacs.login import VARIABLE, Login, check_address, read_login
from sahfl.pacs.mapping import Mapping
from sahfl.pacs.orders import Order, read_orders

IMAGE, _, AFFINE = phantom_hu()


def login_file(tmp_path, text, mode=0o600):
    path = tmp_path / "login"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_login_is_a_token_or_a_user_with_a_password(tmp_path, monkeypatch):
    assert read_login(login_file(tmp_path, "Bearer abc.def\n")) == Login(token="abc.def")
    assert read_login(login_file(tmp_path, "anna:pass:word\n")) == Login(user="anna", password="pass:word")
    assert read_login(None) is None
    monkeypatch.setenv(VARIABLE, "Bearer xyz")
    assert read_login(None) == Login(token="xyz")
    assert "xyz" not in repr(read_login(None))


WRONG = {
    "open": ("anna:geheim", 0o644, r"others may read it \(mode 0644\); run `chmod 600"),
    "lines": ("anna\ngeheim", 0o600, "got several lines, expected one"),
    "form": ("geheim", 0o600, "expected one line: Bearer TOKEN or USER:PASSWORD"),
    "no-user": (":geheim", 0o600, "expected one line"),
    "empty-token": ("Bearer ", 0o600, "expected one line"),
}


@pytest.mark.parametrize(("text", "mode", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_faulty_login_is_refused_and_not_quoted(tmp_path, text, mode, message):
    path = login_file(tmp_path, text, mode)
    with pytest.raises(ConfigError, match=message) as info:
        read_login(path)
    assert "geheim" not in str(info.value)
    if "chmod" in message:
        path.chmod(0o600)  # as the message says
        assert read_login(path).user == "anna"


def test_only_a_protected_address_gets_a_login():
    known = Login(token="t")
    assert check_address("https://pacs.example/dicom-web/", known, plain=False) == "https://pacs.example/dicom-web"
    assert check_address("http://localhost:8042/dicom-web", known, plain=False).startswith("http:")
    assert check_address("http://pacs.example/dicom-web", None, plain=True).startswith("http:")
    for login, plain in ((known, False), (known, True), (None, False)):
        with pytest.raises(ConfigError, match="got http, expected https"):
            check_address("http://pacs.example/dicom-web", login, plain=plain)
    with pytest.raises(ConfigError, match="has a login in it") as info:
        check_address("https://anna:geheim@pacs.example/", None, plain=False)
    assert "geheim" not in str(info.value)
    for url in ("pacs.example", "ftp://pacs.example/", "https://", "https://a/b?x=1", "file:///etc/passwd"):
        with pytest.raises(ConfigError, match="got no address"):
            check_address(url, None, plain=False)


def orders(tmp_path, text):
    (tmp_path / "studies.csv").write_text(text)
    return read_orders(tmp_path / "studies.csv")


def test_a_list_names_studies_by_uid_or_accession_number(tmp_path):
    found = orders(tmp_path, "\ufeffpseudonym;study;accession;patient\nA1;1.2.3;;\nA2;;ACC 7;A1\n")
    assert found == (Order("A1", "A1", "1.2.3"), Order("A2", "A1", "", "ACC 7"))
    assert "1.2.3" not in repr(found)


def test_a_list_is_read_as_spreadsheets_write_it(tmp_path):
    text = "Pseudonym;Study;ward\r\nA1;1.2.3;Säle\r\n;;\r\n"
    for encoding in ("utf-8", "utf-16", "cp1252"):
        (tmp_path / "studies.csv").write_bytes(text.encode(encoding))
        assert read_orders(tmp_path / "studies.csv") == (Order("A1", "A1", "1.2.3"),)
    with pytest.raises(DataError, match="line 2: is no row of a table"):
        orders(tmp_path, 'pseudonym,study\n"' + "1" * 200_000)


LISTS = {
    "columns": ("name,study\nA,1.2\n", "expected a table with the columns"),
    "path": ("pseudonym,study\n../../x,1.2\n", "line 2: pseudonym and patient must be"),
    "twice": ("pseudonym,study\nA,1.2\na,1.3\n", "pseudonym 'a' is given 2 times"),
    "study-twice": ("pseudonym,study\nA,1.2\nB,1.2\n", "a study is listed 2 times"),
    "wildcard": ("pseudonym,accession\nA,77*\n", r"line 2: accession .* would match other patients"),
    "no-uid": ("pseudonym,study\nA,Muster\n", "line 2: study is no StudyInstanceUID"),
    "both": ("pseudonym,study,accession\nA,1.2,7\n", "line 2: expected either a study or an accession"),
    "neither": ("pseudonym,study\nA,\n", "line 2: expected either a study or an accession"),
    "empty": ("pseudonym,study\n", "no study"),
}


@pytest.mark.parametrize(("text", "message"), LISTS.values(), ids=LISTS.keys())
def test_a_faulty_list_is_refused_by_its_lines(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as info:
        orders(tmp_path, text)
    assert "Muster" not in str(info.value)


@contextmanager
def serving(answer, **options):
    """An archive on this machine that answers every request with ``answer(handler)``."""
    with listening(answer) as port:
        yield Archive(f"http://127.0.0.1:{port}/dicom-web", Login(token="secret-token"), **options)


@contextmanager
def listening(answer, tls=None):
    """A server on this machine, with the certificate of ``tls`` if given; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda request, address: None  # a client that does not trust it hangs up
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def respond(handler, content=b"", *, status=200, kind="application/dicom+json", **headers):
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def certificate(folder):
    """A certificate of this machine, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(built.public_bytes(form[0]))
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return tls


def test_a_certificate_of_the_hospital_s_own_authority_is_checked_against_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "PAUSE_MS", 1)
    asked = []

    def answer(handler):
        asked.append(handler.headers["Authorization"])
        respond(handler, b"[]")

    with listening(answer, certificate(tmp_path)) as port:
        address, login = f"https://localhost:{port}/dicom-web", Login(user="anna", password="geheim")
        with pytest.raises(PacsError, match=r"certificate cannot be checked; name the file .* \(authority\)"):
            Archive(address, login).search("studies")
        assert asked == []  # no login for a server that nobody knows
        assert Archive(address, login, authority=tmp_path / "certificate.pem").search("studies") == []
    assert asked == ["Basic YW5uYTpnZWhlaW0="]


ODD = {
    "too-large": (lambda handler: respond(handler, b" " * 5000), "has more than 0 MiB"),
    "redirect": (lambda handler: respond(handler, status=302, Location="http://127.0.0.1:1/"), "redirects to another"),
    "no-json": (lambda handler: respond(handler, b"<html>Muster</html>"), "answer cannot be read"),
    "no-list": (lambda handler: respond(handler, b"[3]"), "answer cannot be read"),
    "unknown": (lambda handler: respond(handler, status=404), "HTTP 404; the archive has no such thing"),
    "forbidden": (lambda handler: respond(handler, status=403), "HTTP 403; the login may not do this"),
    "broken": (lambda handler: handler.connection.close(), "cannot be reached"),
}


@pytest.mark.parametrize(("answer", "message"), ODD.values(), ids=ODD.keys())
def test_an_odd_archive_is_one_error_without_identifiers(monkeypatch, caplog, answer, message):
    monkeypatch.setattr(archives, "INSTANCE_BYTES", 4000)
    monkeypatch.setattr(archives, "PAUSE_MS", 1)
    with serving(answer) as archive, pytest.raises(PacsError, match=message) as info:
        archive.search("studies", AccessionNumber="ACC-77")
    shown = str(info.value) + caplog.text
    assert not [text for text in ("ACC-77", "secret-token", "Muster") if text in shown]


def test_another_patient_s_instance_than_was_asked_for_is_refused():
    stream = io.BytesIO()
    slice_dataset(IMAGE, AFFINE, 3).save_as(stream, enforce_file_format=True)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + stream.getvalue() + b"\r\n--b--"

    def answer(handler):
        respond(handler, body, kind='multipart/related; type="application/dicom"; boundary=b')

    with serving(answer) as archive:
        asked = uid("study"), uid("ct"), uid("ct", 3)
        assert archive.retrieve(*asked).SOPInstanceUID == asked[2]
        with pytest.raises(PacsError, match="sent another instance than it was asked for"):
            archive.retrieve(*asked[:2], uid("ct", 4))


def test_an_archive_that_gives_the_same_page_again_ends_the_search():
    page = b'[{"0020000D": {"vr": "UI", "Value": ["1.2.3"]}}]'
    with serving(lambda handler: respond(handler, page)) as archive:
        assert [item.StudyInstanceUID for item in archive.search("studies")] == ["1.2.3"]


def test_an_archive_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(archives, "MOST_SERIES", 20)
    count = iter(range(10_000))

    def answer(handler):
        respond(handler, b'[{"0020000E": {"vr": "UI", "Value": ["1.2.%d"]}}]' % next(count))

    with serving(answer) as archive, pytest.raises(PacsError, match="got more than 20 series"):
        archive.search("series", "1.2.3")


def test_an_archive_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(archives, "PAUSE_MS", 1)
    with pytest.raises(PacsError, match="cannot be reached; check its address"):
        Archive("http://127.0.0.1:9/dicom-web").search("studies")


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dicomweb_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'sahfl\[dicomweb\]'"):
        Archive("http://127.0.0.1:9/dicom-web")


def test_a_missing_file_of_certificates_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="expected certificates"):
        Archive("https://pacs.example", authority=tmp_path / "none.pem")


def test_the_mapping_lies_beside_the_scans_and_not_in_them(tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path / "scans")
    assert Mapping(tmp_path / "scans").folder == tmp_path / "scans-mapping" == Mapping(Path()).folder


def test_a_damaged_secret_is_not_replaced(tmp_path):
    mapping = Mapping(tmp_path / "scans")
    first = mapping.secret()
    assert Mapping(tmp_path / "scans").secret() == first
    (mapping.folder / "secret").write_text("12")
    with pytest.raises(PacsError, match="is damaged; restore it from a backup"):
        mapping.secret()
