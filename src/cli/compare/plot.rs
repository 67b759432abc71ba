//! Pictures of a comparison: bars for the phases of each guest, as SVG and PNG, and a page with them and the tables.
use super::report::{Report, Row, number};
use crate::cli::Error;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use std::fmt::Write;
use std::path::Path;

/// A panel's size in pixels.
const PANEL: (u32, u32) = (900, 400);
/// What a letter of a label takes of that, and the most that a label does.
const LETTER: usize = 8;
const LONGEST: usize = 16;
/// Colours of the subjects, told apart by those who see few, too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];
/// Where a font may be, for what is in pictures of dots.
const FONTS: &[&str] = &[
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
    "/System/Library/Fonts/Supplemental/Arial.ttf",
    "C:\\Windows\\Fonts\\arial.ttf",
];

/// Writes the page and its pictures, which are beside it.
///
/// # Errors
/// A file cannot be written.
pub fn page(report: &Report, path: &Path) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let has_font = font();
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(|e| Error::new(format!("--html: {}: {e}", path.display())))
    };
    let mut body = String::new();
    for (n, guest) in report.guests().into_iter().enumerate() {
        let rows = report.rows(guest);
        let times: Vec<&Row> = rows.iter().filter(|r| r.unit == "s" && r.name != "guest time").collect();
        let svg = svg(report, guest, &times)?;
        write(&path.with_file_name(format!("{stem}-{n}.svg")), svg.as_bytes())?;
        if has_font {
            write(&path.with_file_name(format!("{stem}-{n}.png")), &png(report, guest, &times)?)?;
        } else if n == 0 {
            super::tell("--html: no TrueType font is where it is looked for (fonts-dejavu-core): no PNG");
        }
        let _ = write!(body, "<h2>{}</h2>\n{svg}\n{}", escaped(guest), table(report, &rows));
    }
    let failed: String = report
        .runs
        .iter()
        .filter_map(|r| match &r.outcome {
            super::run::Outcome::Failed(why) => {
                Some(format!("<p>Failed: {} by {}: {}</p>\n", escaped(&r.guest), r.subject, escaped(why)))
            }
            super::run::Outcome::Done(_) => None,
        })
        .collect();
    let page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Comparison</title>\n<style>body{{font:16px \
         sans-serif;max-width:60em;margin:2em auto}}table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:\
         right;border-bottom:1px solid #ccc}}td:first-child{{text-align:left}}svg{{max-width:100%;height:auto}}</style>\n\
         <h1>The same guest on each engine</h1>\n<p>Mynah {} on {}. Medians; behind them the ratio to the first, and half \
         the spread.</p>\n{body}{failed}</html>\n",
        report.mynah,
        escaped(&report.host)
    );
    write(path, page.as_bytes())?;
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn table(report: &Report, rows: &[Row]) -> String {
    let heads: String = report.subjects().iter().map(|s| format!("<th>{s}</th>")).collect();
    let mut text = format!("<table><tr><th></th>{heads}</tr>\n");
    for row in rows {
        let first = row.values.first().copied().flatten();
        let cells: String = row
            .values
            .iter()
            .enumerate()
            .map(|(n, v)| match (v, first) {
                (Some(v), Some(f)) if n > 0 && f.value > 0.0 => format!(
                    "<td>{} ({:.2}&times;, &plusmn;{:.0}%)</td>",
                    number(v.value),
                    v.value / f.value,
                    v.spread * 50.0
                ),
                (Some(v), _) => format!("<td>{} (&plusmn;{:.0}%)</td>", number(v.value), v.spread * 50.0),
                (None, _) => "<td>-</td>".into(),
            })
            .collect();
        let unit = if row.unit.is_empty() { String::new() } else { format!(", {}", row.unit) };
        let _ = writeln!(text, "<tr><td>{}{unit}</td>{cells}</tr>", escaped(&row.name));
    }
    text + "</table>\n"
}

/// Registers a font of the system's; whether there is one.
fn font() -> bool {
    FONTS.iter().any(|path| {
        let Ok(bytes) = std::fs::read(path) else { return false };
        register_font("sans-serif", FontStyle::Normal, Vec::leak(bytes)).is_ok()
    })
}

fn svg(report: &Report, guest: &str, rows: &[&Row]) -> Result<String> {
    let mut text = String::new();
    draw(SVGBackend::with_string(&mut text, size(rows)).into_drawing_area(), report, guest, rows)?;
    Ok(text)
}

fn png(report: &Report, guest: &str, rows: &[&Row]) -> Result<Vec<u8>> {
    let (width, height) = size(rows);
    let mut dots = vec![0; width as usize * height as usize * 3];
    draw(BitMapBackend::with_buffer(&mut dots, (width, height)).into_drawing_area(), report, guest, rows)?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&dots)?;
    Ok(bytes)
}

/// Times of the run, and those that the guest has measured: each kind has a scale of its own.
fn panels<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let of = |is_result| rows.iter().copied().filter(|r| r.is_result == is_result).collect::<Vec<_>>();
    [of(false), of(true)].into_iter().filter(|p| !p.is_empty()).collect()
}

fn size(rows: &[&Row]) -> (u32, u32) {
    (PANEL.0, PANEL.1 * panels(rows).len().max(1) as u32)
}

/// A panel for each kind of times, one below the other.
fn draw<B: DrawingBackend>(
    area: DrawingArea<B, plotters::coord::Shift>,
    report: &Report,
    guest: &str,
    rows: &[&Row],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let failed = |e: DrawingAreaErrorKind<B::ErrorType>| anyhow!("a picture cannot be drawn: {e}");
    area.fill(&WHITE).map_err(failed)?;
    let panels = panels(rows);
    for (place, rows) in area.split_evenly((panels.len().max(1), 1)).iter().zip(&panels) {
        let caption = match rows.iter().any(|r| r.is_result) {
            true => format!("{guest}: what it measures itself"),
            false => guest.to_owned(),
        };
        panel(place, report, &caption, rows)?;
    }
    area.present().map_err(failed)?;
    Ok(())
}

/// A group of bars for each row, a bar of each subject, and a line for the spread of its runs.
fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    report: &Report,
    caption: &str,
    rows: &[&Row],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let failed = |e: DrawingAreaErrorKind<B::ErrorType>| anyhow!("a picture cannot be drawn: {e}");
    let subjects = report.subjects();
    let most = rows
        .iter()
        .flat_map(|r| &r.values)
        .flatten()
        .map(|m| m.value * (1.0 + m.spread / 2.0))
        .fold(0.0, f64::max);
    // Names that do not stand beside each other are written upwards.
    let longest = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).min(LONGEST);
    let upwards = rows.len() * longest * LETTER > PANEL.0 as usize - 80;
    let names: Vec<String> = rows.iter().map(|r| r.name.chars().take(LONGEST).collect()).collect();
    // The legend is above the highest bars.
    let headroom = 1.05 + 0.09 * subjects.len() as f64;
    let font = ("sans-serif", 13).into_font();
    let style = match upwards {
        true => {
            TextStyle::from(font.transform(FontTransform::Rotate270)).pos(Pos::new(HPos::Right, VPos::Center))
        }
        false => TextStyle::from(font).pos(Pos::new(HPos::Center, VPos::Top)),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(if upwards { (longest * LETTER + 12) as u32 } else { 36 })
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..rows.len().max(1) as f64, 0.0..(most * headroom).max(1e-3))
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("seconds")
        .label_style(("sans-serif", 13))
        .draw()
        .map_err(failed)?;
    // Names stand in the middle below their groups.
    let (left, top) = area.get_base_pixel();
    for (at, name) in names.iter().enumerate() {
        let (x, y) = chart.plotting_area().map_coordinate(&(at as f64 + 0.5, 0.0));
        area.draw_text(name, &style, (x - left, y - top + 8)).map_err(failed)?;
    }
    let width = 0.8 / subjects.len().max(1) as f64;
    for (n, subject) in subjects.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let bars = rows.iter().enumerate().filter_map(|(at, row)| {
            let m = row.values.get(n).copied().flatten()?;
            let left = at as f64 + 0.1 + n as f64 * width;
            Some(Rectangle::new([(left, 0.0), (left + width * 0.92, m.value)], colour.filled()))
        });
        chart
            .draw_series(bars)
            .map_err(failed)?
            .label(*subject)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
        let spreads = rows.iter().enumerate().filter_map(|(at, row)| {
            let m = row.values.get(n).copied().flatten()?;
            let x = at as f64 + 0.1 + (n as f64 + 0.46) * width;
            let half = m.value * m.spread / 2.0;
            Some(PathElement::new([(x, (m.value - half).max(0.0)), (x, m.value + half)], BLACK))
        });
        chart.draw_series(spreads).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .border_style(RGBColor(200, 200, 200))
        .background_style(WHITE)
        .label_font(("sans-serif", 14))
        .draw()
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::run::{Figures, Outcome};
    use super::*;

    /// A report of two subjects and so many results of the guest's, in a folder of its own.
    fn page_of(results: usize) -> (String, std::path::PathBuf) {
        let mut report = Report::new();
        for (subject, factor) in [("jit", 1.0), ("qemu", 2.5)] {
            let results = (0..results).map(|n| (format!("int-number{n}"), factor * 0.1 * n as f64)).collect();
            let figures = Figures { wall: 20.0 * factor, cpu: 19.0 * factor, results, ..Figures::default() };
            report.add("guest <1>", subject, Outcome::Done(figures));
        }
        let folder = std::env::temp_dir().join(format!("mynah-plot-{}-{results}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        page(&report, &folder.join("page.html")).unwrap();
        (std::fs::read_to_string(folder.join("page-0.svg")).unwrap(), folder)
    }

    #[test]
    fn many_names_are_written_upwards_and_what_the_guest_measures_has_its_own_scale() {
        let (few, folder) = page_of(0);
        assert!(few.contains(r#"width="900" height="400""#), "{few}");
        assert_eq!(few.matches("rotate(270").count(), 1, "what the scale is of: {few}");
        std::fs::remove_dir_all(folder).unwrap();
        let (many, folder) = page_of(20);
        assert!(many.contains(r#"width="900" height="800""#), "{many}");
        assert_eq!(many.matches("rotate(270").count(), 20 + 2, "names, and what the scales are of: {many}");
        assert!(many.contains("what it measures itself"));
        let html = std::fs::read_to_string(folder.join("page.html")).unwrap();
        assert!(html.contains("guest &lt;1&gt;") && html.contains("int-number19"), "{html}");
        if font() {
            let dots = std::fs::read(folder.join("page-0.png")).unwrap();
            assert!(dots.starts_with(b"\x89PNG"));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
