"Stage 2 on sound and film: files that lie, break or attack, and whether every second is where it was"
import io, struct, wave

import av
import numpy as np
import pytest
import soundfile as sf
from PIL import Image, ImageSequence

from lifelab.clean.clean import clean, drafts
from lifelab.clean.records import records
from lifelab.clean.sound import sound, waveform
from lifelab.clean.unpack import Refused
from lifelab.clean.video import film_length, video
from lifelab.collect.collect import collect
from lifelab.core.profile import tiny

COLOURS = [(200,30,30), (30,200,30), (30,30,200), (220,220,220)]

def beeps(seconds, at, rate=16_000):
    "Silence with beeps of 880 Hz, .2 s long, at some seconds"
    t = np.arange(int(seconds*rate))/rate; x = np.zeros(len(t))
    for b in at: x += .5*np.sin(2*np.pi*880*t)*((t>=b) & (t<b+.2))
    return x

def film(seconds=6, fps=10, size=(96, 64), at=(), fmt='matroska', times=None):
    "A film whose seconds have colours, with beeps at some seconds; `times` are the moments of its frames"
    out = io.BytesIO()
    with av.open(out, 'w', format=fmt) as c:
        mkv = fmt=='matroska'
        v = c.add_stream('mjpeg' if mkv else 'mpeg4', rate=fps); v.width, v.height = size; v.pix_fmt = 'yuvj420p' if mkv else 'yuv420p'
        a = c.add_stream('pcm_s16le' if mkv else 'aac', rate=16_000, layout='mono') if at else None
        from fractions import Fraction
        v.codec_context.time_base = Fraction(1, 1000 if times else fps)
        for i,t in enumerate(times if times is not None else np.arange(seconds*fps)/fps):
            px = np.zeros((size[1], size[0], 3), 'u1'); px[:] = COLOURS[int(t+1e-6)%4]; px[:size[1]//4,:size[0]//4] = 128
            f = av.VideoFrame.from_ndarray(px, format='rgb24'); f.pts = round(t*1000) if times else i; f.time_base = v.codec_context.time_base
            c.mux(v.encode(f))
        if a:
            x = (beeps(seconds, at)*32_767).astype('i2')
            for k in range(0, len(x), 1024):
                f = av.AudioFrame.from_ndarray(x[None,k:k+1024], format='s16', layout='mono'); f.sample_rate, f.pts = 16_000, k
                c.mux(a.encode(f))
            c.mux(a.encode())
        c.mux(v.encode())
    return out.getvalue()

def wav(x, rate=16_000, channels=1):
    "Samples as a WAV file"
    out = io.BytesIO(); sf.write(out, np.repeat(np.asarray(x)[:,None], channels, 1), rate, format='WAV', subtype='PCM_16')
    return out.getvalue()

def frames(blob): return [np.asarray(f.convert('RGB')) for f in ImageSequence.Iterator(Image.open(io.BytesIO(blob)))]
def colour(px): return int(np.argmin([abs(px[-1,-1].astype(int)-c).sum() for c in COLOURS]))
def kept(data, name='a.mkv'): return [d for d in video(data, dict(path=name, item='f'), tiny) if 'reason' not in d]
def loud(blob): x, r = sf.read(io.BytesIO(blob)); return np.flatnonzero(abs(x)>.3)/r

@pytest.mark.parametrize('fmt', ['matroska', 'mp4'])
def test_frames_and_beeps_are_where_they_were(fmt):
    at = (.5, 3.25, 5.7)
    ds = kept(film(6, at=at, fmt=fmt))
    clips = [d for d in ds if d['modality']=='video']
    assert [d['start'] for d in clips]==[0, 2, 4] and [d['part'] for d in clips]==[0, 1, 2]
    assert [[colour(p) for p in frames(d['blob'])] for d in clips]==[[0,0,1,1], [2,2,3,3], [0,0,1,1]]
    stills = [d for d in ds if d['modality']=='image']
    assert [colour(np.asarray(Image.open(io.BytesIO(d['blob'])))) for d in stills]==[1, 3, 1] and [d['start'] for d in stills]==[1.25, 3.25, 5.25]
    heard = [(d['start']+t.min(), d['start']+t.max()) for d in ds if d['modality']=='audio' and len(t := loud(d['blob']))]
    assert len(heard)==3 and all(abs(a-b)<.03 and abs(z-b-.2)<.03 for (a,z),b in zip(heard, at)), heard

def test_uneven_frames_go_by_their_time_stamps():
    times = [0, .1, .2, 1.0, 2.0, 2.9, 3.0, 3.95] # a frame is shown until the next
    clips = [d for d in kept(film(4, times=times)) if d['modality']=='video']
    assert [[colour(p) for p in frames(d['blob'])] for d in clips]==[[0,0,1,1], [2,2,3,3]]

def test_a_film_lying_on_its_side_is_turned_upright():
    data = bytearray(film(2, fmt='mp4', size=(96, 64))); at = data.index(b'tkhd')
    matrix = struct.pack('>9i', 0, 1<<16, 0, -(1<<16), 0, 0, 64<<16, 0, 1<<30) # a quarter turn clockwise, as telephones write it
    k = data.index(struct.pack('>i', 1<<16)+bytes(12)+struct.pack('>i', 1<<16), at); data[k:k+36] = matrix
    still = next(d for d in kept(bytes(data)) if d['modality']=='image')
    px = np.asarray(Image.open(io.BytesIO(still['blob'])))
    with av.open(io.BytesIO(bytes(data))) as c: assert abs(next(c.decode(video=0)).rotation)==90
    grey = abs(px.astype(int)-128).sum(-1)<60
    assert grey[:8,-8:].mean()>.9 and grey[:8,:8].mean()<.1, 'what was at the upper left stands at the upper right'

def test_a_film_cut_off_keeps_what_can_be_decoded():
    data = film(6, at=(.5,)); ds = list(video(data[:len(data)*6//10], dict(path='cut.mkv', item='f'), tiny))
    clips = [d for d in ds if d.get('modality')=='video']
    assert 1<=len(clips)<3 and [colour(p) for p in frames(clips[0]['blob'])]==[0,0,1,1]
    with pytest.raises(Refused, match='corrupt|malformed'): list(video(film(6, fmt='mp4')[:2000], dict(path='x.mp4'), tiny))

def test_only_sound_or_nothing():
    out = io.BytesIO()
    with av.open(out, 'w', format='mp4') as c:
        a = c.add_stream('aac', rate=16_000, layout='mono')
        f = av.AudioFrame.from_ndarray((beeps(1, [.2])[None]*32_767).astype('i2'), format='s16', layout='mono'); f.sample_rate, f.pts = 16_000, 0
        c.mux(a.encode(f)); c.mux(a.encode())
    assert {d['modality'] for d in kept(out.getvalue(), 'voice.m4v')}=={'audio'}

def test_a_still_film_keeps_all_its_frames():
    clips = [d for d in kept(film(1)) if d['modality']=='video']
    assert len(clips)==1 and len(frames(clips[0]['blob']))==tiny.clip_frames

HOSTILE = {
    'playlist': b'#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n',
    'concat': b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    'sdp': b'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n',
    'text': b'I am a birdsong. '*100,
    'header only': b'RIFF\xff\xff\xff\xffWAVEfmt ',
    'zero samples': wav([]),
    'rate of one': wav(np.zeros(100), 1),
    'rate beyond any recorder': wav(np.zeros(1000), 2_000_000),
    'empty box': struct.pack('>I4s4sI', 16, b'ftyp', b'isom', 0)+struct.pack('>I4s', 8, b'moov'),
    'huge box': struct.pack('>I4s4sI', 16, b'ftyp', b'isom', 0)+struct.pack('>I4sQ', 1, b'moov', 1<<62),
    'picture named sound': b'\x89PNG\r\n\x1a\n'+bytes(64),
}

@pytest.mark.parametrize('name', HOSTILE)
@pytest.mark.parametrize('fmt', ['wav', 'mp3', 'ogg', 'flac', 'mp4'])
def test_hostile_files_are_set_aside_with_a_reason(tmp_path, name, fmt):
    path = tmp_path/'x'; path.write_bytes(HOSTILE[name])
    out = list(drafts(dict(format=fmt, path=f'x.{fmt}', title=name, item='x'), path, tiny))
    assert out and all(d.get('reason') and d['reason']!='reader failed' for d in out), out

def test_a_header_that_promises_ten_hours():
    x = beeps(1, [.3]); data = bytearray(wav(x)); k = data.index(b'data')+4
    data[k:k+4] = struct.pack('<I', 36_000*32_000); data[4:8] = struct.pack('<I', 36+36_000*32_000)
    got = list(sound(bytes(data), dict(path='long.wav'))) # libsndfile believes the file, not the claim
    assert [d.get('seconds') for d in got if 'blob' in d]==[1.]
    flac = io.BytesIO(); sf.write(flac, x, 16_000, format='FLAC'); data = bytearray(flac.getvalue())
    data[21] = (data[21]&0xf0)|1; data[22:26] = struct.pack('>I', 0) # total samples: 2**32, 74 hours
    with pytest.raises(Refused, match='too long'): list(sound(bytes(data), dict(path='long.flac')))

def test_many_channels_are_mixed_and_too_many_refused():
    x = beeps(1, [.3])
    assert abs(waveform(wav(x, channels=8))[0]-x).max()<1e-3
    with pytest.raises(Refused, match='too many channels'): waveform(wav(x[:100], channels=64))

@pytest.mark.parametrize('fmt,sub', [('WAV', 'PCM_16'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'), ('MP3', 'MPEG_LAYER_III')])
def test_broken_sounds_never_crash(fmt, sub, tmp_path):
    out = io.BytesIO(); sf.write(out, beeps(3, [.5, 2.5]), 16_000, format=fmt, subtype=sub); data = out.getvalue(); rng = np.random.default_rng(0)
    path = tmp_path/'x'
    for i in range(40):
        bad = bytearray(data[:int(rng.integers(1, len(data)))] if i%2 else data)
        for k in rng.integers(0, len(bad), rng.integers(0, 20)): bad[k] = rng.integers(256)
        path.write_bytes(bytes(bad) or b'x')
        for d in drafts(dict(format=fmt.lower(), path='x', item='x'), path, tiny):
            assert d.get('reason')!='reader failed', d
            if 'blob' in d:
                with wave.open(io.BytesIO(d['blob'])) as w: assert w.getframerate()==16_000 and 0<w.getnframes()<=32_000 and w.getnchannels()==1

@pytest.mark.parametrize('fmt', ['matroska', 'mp4', 'avi'])
def test_broken_films_never_crash(fmt, tmp_path):
    data = film(3, fmt=fmt, at=(.5,) if fmt!='avi' else ()); rng = np.random.default_rng(1); path = tmp_path/'x'
    for i in range(30):
        bad = bytearray(data[:int(rng.integers(1, len(data)))] if i%2 else data)
        for k in rng.integers(0, len(bad), rng.integers(0, 20)): bad[k] = rng.integers(256)
        path.write_bytes(bytes(bad) or b'x')
        for d in drafts(dict(format='mp4', path='x', item='x'), path, tiny):
            assert d.get('reason')!='reader failed', d
            if d.get('modality')=='video': assert len(frames(d['blob']))==tiny.clip_frames

def test_own_folder_with_good_and_planted_files(tmp_path):
    own = tmp_path/'own'; own.mkdir()
    (own/'night.wav').write_bytes(wav(beeps(5, [.5, 2.5, 4.5]))); (own/'hop.mkv').write_bytes(film(4, at=(1.,)))
    (own/'named_wrongly.mp3').write_bytes(wav(beeps(1, [.1])+.01)); (own/'notes.mp4').write_bytes(b'these are field notes, no film\n'*40)
    (own/'cut.mkv').write_bytes(film(6)[:3000]); (own/'silence.flac').write_bytes((lambda b: (sf.write(b, np.zeros(32_000), 16_000, format='FLAC'), b.getvalue())[1])(io.BytesIO()))
    lab = tmp_path/'lab'
    collect(lab, 'tiny', data=own, licence='CC-BY-4.0')
    report = clean(lab, 'tiny')
    got = list(records(lab))
    by = {m: {r['title'] for r in got if r['modality']==m} for m in ('audio', 'video', 'image')}
    assert by['audio']>={'night', 'named_wrongly', 'hop, sound track'} and by['video']>={'hop'} and by['image']>={'hop'}
    assert len({r['cluster'] for r in got if r['title'].startswith('hop')})==1
    assert report.counts['dropped'].get('corrupt', 0)>=1 and report.counts['dropped'].get('silent clip')==2
    assert all(r['licence']=='CC-BY-4.0' and r['train'] for r in got)
