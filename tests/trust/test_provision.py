from trust_kits import make_consortium

from sahfl.trust.kit import ServerKit, SiteKit


def test_a_consortium_loads(tmp_path):
    paths = make_consortium(tmp_path / "c", sites=["a", "b"])
    kit = SiteKit.load(paths.sites["a"])
    server = ServerKit.load(paths.server)
    assert kit.signer == server.signer.public
    assert set(server.sites()) == {"a", "b"}
    kit.tls(), server.tls()
